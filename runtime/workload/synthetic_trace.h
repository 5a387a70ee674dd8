#ifndef FABRICAST_RUNTIME_WORKLOAD_SYNTHETIC_TRACE_H_
#define FABRICAST_RUNTIME_WORKLOAD_SYNTHETIC_TRACE_H_

#include <string>

namespace fabricast {

// The text of traces/synthetic_hour.csv: an hour of chat traffic in Azure's format, about 500
// requests. It is made up, not recorded: arrivals follow a Poisson process whose rate swells and
// ebbs once in the hour and triples in five bursts of 40 s; lengths are lognormal. The same on
// every call.
std::string SyntheticHourCsv();

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WORKLOAD_SYNTHETIC_TRACE_H_
