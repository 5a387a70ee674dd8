// FABRICAST_CHECK: our own bugs end the program, with the place and the values. Never for bad
// input.
//
//   FABRICAST_CHECK(a < b) << "a=" << a << " b=" << b;
#ifndef FABRICAST_RUNTIME_CHECK_H_
#define FABRICAST_RUNTIME_CHECK_H_

#include <cstdlib>
#include <iostream>
#include <sstream>

namespace fabricast::internal {

class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition) {
    message_ << file << ":" << line << ": check failed: " << condition << " ";
  }
  [[noreturn]] ~CheckFailure() {
    std::cerr << message_.str() << std::endl;
    std::abort();
  }
  std::ostream& stream() { return message_; }

 private:
  std::ostringstream message_;
};

// Gives both arms of the conditional below the type void.
struct Voidify {
  void operator&(std::ostream&) {}
};

}  // namespace fabricast::internal

#define FABRICAST_CHECK(condition)                 \
  (condition) ? (void)0                            \
              : ::fabricast::internal::Voidify() & \
                    ::fabricast::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()

#endif  // FABRICAST_RUNTIME_CHECK_H_
