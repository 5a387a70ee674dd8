// Collectives in simulated time: what nccl-tests would print on a topology.
#ifndef FABRICAST_SIMULATOR_COLLECTIVE_H_
#define FABRICAST_SIMULATOR_COLLECTIVE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "topology/topology.h"

namespace fabricast {

struct CollectiveRun {
  CollectiveOp op = COLLECTIVE_OP_ALL_REDUCE;
  std::vector<int> gpus;      // in ring order
  std::vector<double> sizes;  // bytes
  std::string algorithm;      // "", "ring", "tree"
  std::string protocol;       // "", "LL", "LL128", "Simple"
};

struct CollectiveRow {
  double bytes = 0;
  std::string algorithm;  // the fastest of those allowed
  std::string protocol;
  double seconds = 0;
  double algorithm_bytes_per_s = 0;
  double bus_bytes_per_s = 0;  // as nccl-tests defines it
};

// Simulates each size alone, its flows sharing the segments they cross. Runs in a child process.
absl::StatusOr<std::vector<CollectiveRow>> SimulateCollective(const Topology& topology,
                                                              const CollectiveRun& run);

}  // namespace fabricast

#endif  // FABRICAST_SIMULATOR_COLLECTIVE_H_
