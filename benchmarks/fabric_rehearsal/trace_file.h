// Reads back a timeline that a run or a simulation wrote (runtime/metrics/timeline.h).
#ifndef FABRICAST_BENCHMARKS_FABRIC_REHEARSAL_TRACE_FILE_H_
#define FABRICAST_BENCHMARKS_FABRIC_REHEARSAL_TRACE_FILE_H_

#include <string>

#include "absl/status/statusor.h"
#include "runtime/metrics/timeline.h"

namespace fabricast {

// Its stages' and transfers' slices, without the load; a transfer that is shown on several links
// counts once. kNotFound, or kInvalidArgument naming the file and the event, if it is no such
// trace.
absl::StatusOr<Timeline> ReadTrace(const std::string& file);

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_FABRIC_REHEARSAL_TRACE_FILE_H_
