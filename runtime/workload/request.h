#ifndef FABRICAST_RUNTIME_WORKLOAD_REQUEST_H_
#define FABRICAST_RUNTIME_WORKLOAD_REQUEST_H_

#include <cstdint>

namespace fabricast {

struct Request {
  // Open loop: seconds after the start of the run. Closed loop: ignored; the next request starts
  // when one ends.
  double arrival_s = 0;
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WORKLOAD_REQUEST_H_
