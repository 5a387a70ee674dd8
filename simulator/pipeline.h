// One run of a pipeline in simulated time: the third driver of the scheduler, beside the CPU and
// the GPU engine.
#ifndef FABRICAST_SIMULATOR_PIPELINE_H_
#define FABRICAST_SIMULATOR_PIPELINE_H_

#include <atomic>
#include <deque>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "runtime/cost/communication_cost.h"
#include "runtime/cost/stage_cost.h"
#include "runtime/metrics/recorder.h"
#include "runtime/scheduler/scheduler.h"
#include "runtime/scheduler/stage_queue.h"
#include "simulator/flow_network.h"
#include "simulator/simulate.h"

namespace fabricast {

// Model of the driver
// - The head sits on the first stage: a launched micro-batch is there at once, or after
//   Scenario::control.launch_s.
// - A hop carries one message at a time, in order, as one NCCL channel of ncclSend calls does:
//   latency by size, then the bytes as a flow. It overlaps with the computation of later
//   micro-batches.
// - Activations are tokens x hidden x 2 B. The last stage returns 4 B a sampled token to the head.
class PipelineSimulation {
 public:
  // `scenario` must outlive this. Fails if the calibration lacks a price or the measured times are
  // of another number of stages.
  static absl::StatusOr<std::unique_ptr<PipelineSimulation>> Make(const Scenario& scenario,
                                                                  std::atomic<double>& progress);

  // Runs the workload to its end. Once.
  absl::StatusOr<Result> Run();

 private:
  struct InFlight {
    MicroBatch micro_batch;
    BatchShape shape;
  };
  struct Hop : PipelineHop {
    SendCost cost;
    bool busy = false;
    std::deque<MicroBatchId> waiting = {};
  };

  PipelineSimulation(const Scenario& scenario, std::atomic<double>& progress,
                     std::vector<Hop> hops);

  double now() const { return network_.now(); }
  void ScheduleNextArrival();
  void Arrive(RequestId id);
  void Handle(absl::Span<const Action> actions);
  void Reached(int stage, MicroBatchId id);
  void StartCompute(int stage, MicroBatchId id);
  void Computed(int stage, MicroBatchId id);
  void Send(int hop, MicroBatchId id);
  void StartSend(int hop, MicroBatchId id);
  void Delivered(int hop, MicroBatchId id);
  void Completed(MicroBatchId id);
  int64_t HopBytes(const Hop& hop, const InFlight& batch) const;
  void AddHopsAndLinks(Result& result) const;

  const Scenario& scenario_;
  std::atomic<double>& progress_;
  std::vector<Hop> hops_;  // stage s -> s+1, then last -> first
  FlowNetwork network_;
  Scheduler scheduler_;
  std::vector<StageQueue> queues_;
  std::vector<StageCost> costs_;
  // Of the micro-batch that each stage computes; empty where times are measured.
  std::vector<ComputeTime> running_;
  Recorder recorder_;
  absl::flat_hash_map<MicroBatchId, InFlight> in_flight_;
  size_t next_request_ = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_SIMULATOR_PIPELINE_H_
