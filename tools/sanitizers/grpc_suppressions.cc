// ThreadSanitizer does not see what Debian's gRPC does to hand data from one thread to another: it
// is not compiled for that. So every byte that crosses a stream looks like a race, inside gRPC and
// in our callbacks that it calls. These hide reports with a frame of gRPC, of the libraries that it
// calls, or of a string that it copies; what our own threads do to one another is still seen, but
// for what they do from within its callbacks.
extern "C" const char* __tsan_default_suppressions() {
  return "race:grpc\n"
         "race:gpr_\n"
         "race:^tcp_\n"
         "race:absl::debian3\n"
         "race:google::protobuf\n"
         "race:std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> "
         ">::_M_construct\n"
         "deadlock:absl::debian3\n";
}
