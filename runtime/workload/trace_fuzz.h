#ifndef FABRICAST_RUNTIME_WORKLOAD_TRACE_FUZZ_H_
#define FABRICAST_RUNTIME_WORKLOAD_TRACE_FUZZ_H_

#include <cstdlib>

#include "absl/status/statusor.h"
#include "runtime/workload/lengths.h"
#include "runtime/workload/trace.h"

namespace fabricast {

// What Trace promises, for fuzz tests.
inline void AbortUnlessSound(const absl::StatusOr<Trace>& trace) {
  if (!trace.ok()) return;
  if (trace->requests.empty()) abort();
  double last_s = 0;
  for (const Request& request : trace->requests) {
    if (!(request.arrival_s >= last_s) || request.prompt_tokens < 1 ||
        request.prompt_tokens > kMaxTokens || request.output_tokens < 1 ||
        request.output_tokens > kMaxTokens) {
      abort();
    }
    last_s = request.arrival_s;
  }
}

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WORKLOAD_TRACE_FUZZ_H_
