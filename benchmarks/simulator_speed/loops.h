// What a run of the simulator would cost with parts of it left out: the same timers and flows with
// nobody deciding or recording anything, and the same decisions with no simulated time.
#ifndef FABRICAST_BENCHMARKS_SIMULATOR_SPEED_LOOPS_H_
#define FABRICAST_BENCHMARKS_SIMULATOR_SPEED_LOOPS_H_

#include <cstdint>
#include <functional>
#include <queue>
#include <vector>

#include "absl/status/status.h"
#include "benchmarks/simulator_speed/measure.h"
#include "runtime/metrics/result.pb.h"
#include "simulator/simulate.h"

namespace fabricast {

// The floor of any discrete-event simulator: a binary heap of times and callbacks. Flows take bytes
// / rate and share nothing. Same interface as FlowNetwork.
class HeapNetwork {
 public:
  explicit HeapNetwork(double bytes_per_s) : bytes_per_s_(bytes_per_s) {}

  double now() const { return now_; }
  void After(double seconds, std::function<void()> call);
  void StartFlow(int from, int to, double bytes, std::function<void()> arrived);
  void Run();
  int64_t events() const { return events_; }

 private:
  struct Event {
    double at_s;
    int64_t order;
    std::function<void()> call;
    // The standard's heap has the largest on top.
    bool operator<(const Event& other) const {
      return at_s != other.at_s ? at_s > other.at_s : order > other.order;
    }
  };
  double bytes_per_s_;
  double now_ = 0;
  int64_t events_ = 0;
  std::priority_queue<Event> queue_;
};

// Timers and flows of a run, as many as it had and of its mean sizes.
struct EventMix {
  struct Hop {
    int from_gpu = 0;
    int to_gpu = 0;
    double max_bytes_per_s = 0;
    double compute_s = 0;  // of the stage before it, a micro-batch
    double latency_s = 0;
    double bytes = 0;  // a micro-batch
  };
  int64_t arrivals = 0;
  double arrival_gap_s = 0;
  int64_t micro_batches = 0;
  int in_flight = 0;
  std::vector<Hop> hops;  // one a stage

  // Two stages at least.
  static EventMix Of(const Scenario& scenario, const Result& result);
};

// Plays the mix on FlowNetwork or on a heap. `measurement.events` must come out as the run's.
void PlayOnSimGrid(const Scenario& scenario, const EventMix& mix, Stopwatch& watch,
                   Measurement& measurement);
void PlayOnHeap(const EventMix& mix, Stopwatch& watch, Measurement& measurement);

// The decisions without time: all requests arrive at once, micro-batches move on as soon as they
// can, first in, first out. Each part includes the ones before it.
enum class Part { kScheduler, kStageCosts, kRecorder };
void PlayDecisions(const Scenario& scenario, Part part, Stopwatch& watch, Measurement& measurement);

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_SIMULATOR_SPEED_LOOPS_H_
