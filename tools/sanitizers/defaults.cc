// What the sanitizers' runtimes ask the program for at its start. The variables ASAN_OPTIONS and so
// on come after and win.
//
// There are no suppressions but for gRPC (grpc_suppressions.cc). If a library of the machine ever
// needs one, __lsan_default_suppressions() and its like go here too, with the report that made it
// necessary.

// SimGrid runs each actor on a stack of its own and tells AddressSanitizer nothing of it. Frames
// kept on the heap (Clang's default) would then be taken for another stack's.
extern "C" const char* __asan_default_options() {
  return "detect_stack_use_after_return=0:strict_string_checks=1:check_initialization_order=1";
}

extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }

extern "C" const char* __tsan_default_options() { return "second_deadlock_stack=1"; }
