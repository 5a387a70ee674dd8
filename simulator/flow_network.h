// Time and bytes in SimGrid: timers, and flows that share the segments of a topology by max-min
// fairness.
//
// SimGrid's network model is set to the raw one: no TCP window, no latency (ours are timers), no
// cross traffic, so a lone flow takes bytes / rate exactly. SimGrid allows one engine a process and
// its clock never restarts: make one FlowNetwork a process, in a child where several runs are
// wanted (isolated.h).
#ifndef FABRICAST_SIMULATOR_FLOW_NETWORK_H_
#define FABRICAST_SIMULATOR_FLOW_NETWORK_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "topology/topology.h"

namespace fabricast {

class FlowNetwork {
 public:
  // A route that flows will take.
  struct Path {
    int from;  // GPUs, indices into the topology
    int to;
    double max_bytes_per_s;  // of all flows from `from` to `to` together; infinity: only the
                             // segments limit
  };

  // CHECKs that this is the process's first.
  FlowNetwork(const Topology& topology, const std::vector<Path>& paths);
  ~FlowNetwork();

  // Seconds since the start.
  double now() const;

  // Runs `call` after `seconds` >= 0.
  void After(double seconds, std::function<void()> call);

  // Moves `bytes` over the path from -> to, which must be among `paths`, and runs `arrived` when
  // the last one is there. Sizes of 0 arrive at once.
  void StartFlow(int from, int to, double bytes, std::function<void()> arrived);

  // Runs until nothing is left to happen.
  void Run();

  // Timers and flows so far.
  int64_t events() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fabricast

#endif  // FABRICAST_SIMULATOR_FLOW_NETWORK_H_
