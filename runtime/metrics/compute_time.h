// Arithmetic on ComputeTime: busy time by cause.
#ifndef FABRICAST_RUNTIME_METRICS_COMPUTE_TIME_H_
#define FABRICAST_RUNTIME_METRICS_COMPUTE_TIME_H_

#include "runtime/metrics/result.pb.h"

namespace fabricast {

// The sum of all causes.
double TotalSeconds(const ComputeTime& time);

// sum += factor x time, cause by cause.
void AddScaled(const ComputeTime& time, double factor, ComputeTime& sum);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_METRICS_COMPUTE_TIME_H_
