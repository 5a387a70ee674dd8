// What a scheduling decision costs: a micro-batch must be put together in far less time than the
// milliseconds for which it keeps a stage busy.
//
// Steady state: the given number of requests decode in 8 micro-batches in flight, and 100,000 more
// wait. Every iteration moves the oldest micro-batch through: FirstStageDone, and
// MicroBatchCompleted, which launches the next. "entry": time by entry of a micro-batch; "event":
// by event, arrivals included.

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <iostream>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "benchmark/benchmark.h"
#include "runtime/scheduler/scheduler.h"

namespace fabricast {
namespace {

constexpr int kMaxInFlight = 8;
constexpr int64_t kWaiting = 100'000;
constexpr int64_t kPromptTokens = 100;
constexpr int64_t kOutputTokens = 1'000'000;

SchedulerOptions Options(int64_t running, int64_t kv_blocks) {
  return {.max_in_flight = kMaxInFlight,
          .max_batch_tokens = 8192,
          .max_chunk_tokens = 2048,
          .max_running = static_cast<int>(running),
          .kv_block_tokens = 16,
          .kv_blocks = kv_blocks};
}

class Pipeline {
 public:
  explicit Pipeline(const SchedulerOptions& options) : scheduler_(options) {}

  Scheduler& scheduler() { return scheduler_; }
  int64_t events() const { return events_; }
  int64_t entries() const { return entries_; }
  void ResetCounts() { events_ = entries_ = 0; }

  void Arrive(int64_t count, int64_t max_output_tokens) {
    for (int64_t i = 0; i < count; ++i) {
      Perform(scheduler_.RequestArrived(arrived_++, kPromptTokens, max_output_tokens));
    }
  }

  // Every `stop_one_in`-th sampled token stops; 0: none does.
  void MoveOldestThrough(int64_t stop_one_in) {
    while (first_stage_done_ <= completed_) Perform(scheduler_.FirstStageDone(first_stage_done_++));
    stopped_.clear();
    for (const RequestId id : samples_.front()) {
      if (stop_one_in > 0 && ++sampled_ % stop_one_in == 0) stopped_.push_back(id);
    }
    spare_.push_back(std::move(samples_.front()));
    samples_.pop_front();
    Perform(scheduler_.MicroBatchCompleted(completed_++, stopped_));
  }

  // Until all that may run do, and decode.
  void Warm(int64_t running) {
    while (scheduler_.running() < running) MoveOldestThrough(0);
    for (int i = 0; i < 10 * kMaxInFlight; ++i) MoveOldestThrough(0);
    ResetCounts();
  }

 private:
  void Perform(absl::Span<const Action> actions) {
    ++events_;
    for (const Action& action : actions) {
      if (action.kind != Action::Kind::kLaunch) continue;
      std::vector<RequestId> samples;
      if (!spare_.empty()) {
        samples = std::move(spare_.back());
        spare_.pop_back();
        samples.clear();
      }
      for (const BatchEntry& entry : action.micro_batch.entries) {
        if (entry.samples) samples.push_back(entry.request);
      }
      entries_ += static_cast<int64_t>(action.micro_batch.entries.size());
      samples_.push_back(std::move(samples));
    }
  }

  Scheduler scheduler_;
  RequestId arrived_ = 0;
  MicroBatchId first_stage_done_ = 0;
  MicroBatchId completed_ = 0;
  int64_t sampled_ = 0;
  int64_t events_ = 0;
  int64_t entries_ = 0;
  std::vector<RequestId> stopped_;
  std::deque<std::vector<RequestId>> samples_;
  std::vector<std::vector<RequestId>> spare_;
};

void Report(benchmark::State& state, const Pipeline& pipeline) {
  const auto per = [](int64_t count) {
    return benchmark::Counter(static_cast<double>(count),
                              static_cast<benchmark::Counter::Flags>(benchmark::Counter::kIsRate |
                                                                     benchmark::Counter::kInvert));
  };
  state.counters["entry"] = per(pipeline.entries());
  state.counters["event"] = per(pipeline.events());
  state.counters["entries/batch"] =
      static_cast<double>(pipeline.entries()) / static_cast<double>(state.iterations());
}

void Verify(bool holds, const char* what) {
  if (holds) return;
  std::cerr << "scheduler_benchmark: " << what << "\n";
  std::exit(1);
}

void BM_Decode(benchmark::State& state) {
  const int64_t running = state.range(0);
  Pipeline pipeline(Options(running, int64_t{1} << 40));
  pipeline.Arrive(running + kWaiting, kOutputTokens);
  pipeline.Warm(running);
  Verify(pipeline.scheduler().running() == running, "not all that may run do");
  Verify(pipeline.scheduler().waiting() == kWaiting, "not all others wait");
  for (auto _ : state) pipeline.MoveOldestThrough(0);
  Report(state, pipeline);
}
BENCHMARK(BM_Decode)->Arg(64)->Arg(1024)->Arg(4096);

// One token in 100 is its request's last, and a waiting request takes the place.
void BM_DecodeWithTurnover(benchmark::State& state) {
  const int64_t running = state.range(0);
  Pipeline pipeline(Options(running, int64_t{1} << 40));
  pipeline.Arrive(running + kWaiting, kOutputTokens);
  pipeline.Warm(running);
  for (auto _ : state) {
    pipeline.MoveOldestThrough(100);
    const int64_t missing = kWaiting - pipeline.scheduler().waiting();
    if (missing > 0) pipeline.Arrive(missing, kOutputTokens);
  }
  Verify(pipeline.scheduler().waiting() == kWaiting, "not all others wait");
  Report(state, pipeline);
}
BENCHMARK(BM_DecodeWithTurnover)->Arg(64)->Arg(1024)->Arg(4096);

// A cache that holds half of what the requests want: every few launches one is preempted.
void BM_DecodeWithPreemption(benchmark::State& state) {
  const int64_t running = state.range(0);
  Pipeline pipeline(Options(running, running * (2 * kPromptTokens / 16)));
  pipeline.Arrive(running + kWaiting, 3 * kPromptTokens);
  for (int64_t i = 0; i < 20 * kPromptTokens; ++i) pipeline.MoveOldestThrough(0);
  pipeline.ResetCounts();
  const int64_t preemptions_before = pipeline.scheduler().preemptions();
  for (auto _ : state) {
    pipeline.MoveOldestThrough(0);
    if (pipeline.scheduler().waiting() < kWaiting) pipeline.Arrive(1, 3 * kPromptTokens);
  }
  const int64_t preemptions = pipeline.scheduler().preemptions() - preemptions_before;
  Verify(state.iterations() < 1000 || preemptions > 0, "the cache is not short of blocks");
  Report(state, pipeline);
  state.counters["preemptions/batch"] =
      static_cast<double>(preemptions) / static_cast<double>(state.iterations());
}
BENCHMARK(BM_DecodeWithPreemption)->Arg(64)->Arg(1024)->Arg(4096);

// Arrivals behind 100,000 others.
void BM_Arrival(benchmark::State& state) {
  const int64_t running = state.range(0);
  Pipeline pipeline(Options(running, int64_t{1} << 40));
  pipeline.Arrive(running + kWaiting, kOutputTokens);
  pipeline.Warm(running);
  for (auto _ : state) pipeline.Arrive(1, kOutputTokens);
  Verify(pipeline.scheduler().waiting() == kWaiting + state.iterations(), "not all others wait");
}
// Bounded, for they all stay.
BENCHMARK(BM_Arrival)->Arg(64)->Arg(1024)->Arg(4096)->Iterations(1'000'000);

}  // namespace
}  // namespace fabricast
