// The program iperf3 as a yardstick.
#ifndef FABRICAST_BENCHMARKS_TRANSPORT_IPERF3_H_
#define FABRICAST_BENCHMARKS_TRANSPORT_IPERF3_H_

#include <string>

#include "absl/status/statusor.h"

namespace fabricast {

bool HasIperf3();

// Serves one client on that address, and returns when it has gone. kUnavailable.
absl::Status Iperf3Server(const std::string& ip, int port);

// Received bytes a second, in whole `seconds` after one of warming up, on that many parallel
// connections in writes of 1 MiB, its longest; dials until the server is there. kUnavailable with
// what iperf3 said.
absl::StatusOr<double> Iperf3Client(const std::string& ip, int port, int connections, int seconds);

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_TRANSPORT_IPERF3_H_
