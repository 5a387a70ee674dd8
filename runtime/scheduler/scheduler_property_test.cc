// Thousands of random pipelines, workloads and tiny caches, each event checked by CheckedScheduler.

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <queue>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/scheduler/checked_scheduler.h"
#include "runtime/scheduler/scheduler.h"
#include "runtime/scheduler/stage_queue.h"

namespace fabricast {
namespace {

// Of std::mt19937 itself, whose output the standard fixes, unlike that of the distributions.
class Random {
 public:
  explicit Random(uint32_t seed) : generator_(seed) {}
  // In [low, high].
  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(generator_() % static_cast<uint64_t>(high - low + 1));
  }
  bool OneIn(int64_t n) { return Between(1, n) == 1; }

 private:
  std::mt19937 generator_;
};

struct Arrival {
  int64_t time;
  RequestId id;
  RequestId name;  // in the log; the id unless a test says otherwise
  int64_t prompt_tokens;
  int64_t max_output_tokens;
  int64_t cancel_time;  // -1: never
};

struct Scenario {
  int stages;
  SchedulerOptions options;
  std::vector<Arrival> arrivals;
  int64_t longest_stage_time;
  int64_t longest_hop_time;
  int64_t stop_one_in;  // of the sampled tokens; 0: none
};

Scenario RandomScenario(uint32_t seed) {
  Random random(seed);
  Scenario scenario;
  scenario.stages = static_cast<int>(random.Between(1, 8));
  SchedulerOptions& options = scenario.options;
  options.max_in_flight =
      static_cast<int>(random.OneIn(2) ? scenario.stages : random.Between(1, 2 * scenario.stages));
  options.first_stage_queue = static_cast<int>(random.Between(1, 3));
  options.max_running = static_cast<int>(random.OneIn(3) ? 64 : random.Between(1, 12));
  const int64_t largest_share =
      (options.max_running + options.max_in_flight - 1) / options.max_in_flight;
  // One in four is about a cache that is full all the time: short prompts, long outputs.
  const bool tight = random.OneIn(4);
  options.max_batch_tokens = largest_share + random.Between(1, 30);
  options.max_chunk_tokens = random.Between(1, tight ? 4 : 40);
  options.kv_block_tokens = random.Between(1, tight ? 2 : 8);
  options.kv_blocks = tight             ? random.Between(20, 60)
                      : random.OneIn(4) ? random.Between(100, 250)
                                        : random.Between(1, 40);
  scenario.longest_stage_time = random.Between(1, 20);
  scenario.longest_hop_time = random.Between(0, 10);
  scenario.stop_one_in = random.OneIn(2) ? 0 : random.Between(2, 20);

  const int64_t requests = random.OneIn(5) ? random.Between(30, 80) : random.Between(1, 20);
  const int64_t last_arrival = random.OneIn(3) ? 0 : random.Between(1, 500);
  const int64_t longest_prompt = random.Between(1, tight ? 20 : 60);
  const int64_t longest_output = random.Between(1, tight ? 40 : 20);
  const int64_t cancel_one_in = random.OneIn(2) ? 0 : random.Between(1, 10);
  for (int64_t i = 0; i < requests; ++i) {
    Arrival arrival;
    arrival.time = random.Between(0, last_arrival);
    // Neither the order of ids nor that of their hashes is the order of arrival.
    arrival.id = (i * 7919) % 1000003 * (i % 2 == 0 ? 1 : -1);
    arrival.name = arrival.id;
    arrival.prompt_tokens = random.Between(random.OneIn(20) ? 0 : 1, longest_prompt);
    arrival.max_output_tokens = random.Between(random.OneIn(20) ? 0 : 1, longest_output);
    arrival.cancel_time = cancel_one_in > 0 && random.OneIn(cancel_one_in)
                              ? arrival.time + random.Between(0, 300)
                              : -1;
    scenario.arrivals.push_back(arrival);
  }
  return scenario;
}

// A few requests, each a third or half of a cache of single-token blocks: one that is preempted
// while a younger one is in flight competes with it for blocks when it is computed again.
Scenario ContestedScenario(uint32_t seed) {
  Random random(seed);
  Scenario scenario;
  scenario.stages = static_cast<int>(random.Between(2, 4));
  scenario.options = {.max_in_flight = scenario.stages,
                      .max_batch_tokens = 16,
                      .max_chunk_tokens = random.Between(1, 4),
                      .max_running = 16,
                      .kv_block_tokens = 1,
                      .kv_blocks = random.Between(20, 40)};
  scenario.longest_stage_time = random.Between(1, 3);
  scenario.longest_hop_time = 0;
  scenario.stop_one_in = 0;
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t cache = scenario.options.kv_blocks;
    scenario.arrivals.push_back({.time = 2 * i,
                                 .id = i,
                                 .name = i,
                                 .prompt_tokens = random.Between(cache * 3 / 10, cache / 2),
                                 .max_output_tokens = random.Between(3, 8),
                                 .cancel_time = -1});
  }
  return scenario;
}

// Drives the scheduler as an engine does: a queue of events, a StageQueue for every stage, hops
// that keep the order, and a way back to the head.
class Pipeline {
 public:
  Pipeline(const Scenario& scenario, uint32_t seed)
      : scenario_(scenario),
        random_(seed),
        scheduler_(scenario.options),
        stages_(scenario.stages),
        hop_free_at_(scenario.stages + 1) {
    for (const Arrival& arrival : scenario.arrivals) {
      names_[arrival.id] = arrival.name;
      Schedule(arrival.time, {.kind = Event::Kind::kArrive, .arrival = &arrival});
      if (arrival.cancel_time >= 0) {
        Schedule(arrival.cancel_time, {.kind = Event::Kind::kCancel, .arrival = &arrival});
      }
    }
  }

  // Returns the first broken promise, or "".
  std::string Run() {
    // Every request may be computed again for every token of any request, at one token a
    // micro-batch, and each micro-batch brings a few events a stage: nothing takes longer.
    int64_t tokens = 0;
    for (const Arrival& arrival : scenario_.arrivals) {
      tokens += arrival.prompt_tokens + arrival.max_output_tokens + 2;
    }
    const int64_t most_events = tokens * tokens * (2 * scenario_.stages + 2);
    for (int64_t events = 0; !events_.empty(); ++events) {
      if (!scheduler_.error().empty()) return scheduler_.error();
      if (events > most_events) return "it does not end";
      const auto [time, order, event] = events_.top();
      events_.pop();
      now_ = time;
      Handle(event);
    }
    if (!scheduler_.error().empty()) return scheduler_.error();
    if (!scheduler_.idle()) return "requests are left at the end";
    return "";
  }

  const CheckedScheduler::Counts& counts() const { return scheduler_.counts(); }
  // Every event and action, a line each.
  const std::string& log() const { return log_; }

 private:
  struct Event {
    enum class Kind { kArrive, kCancel, kReachStage, kComputed, kCompleted };
    Kind kind;
    const Arrival* arrival = nullptr;
    int stage = -1;
    MicroBatchId micro_batch = -1;
  };
  using Scheduled = std::tuple<int64_t, int64_t, Event>;  // time, order of scheduling
  struct Later {
    bool operator()(const Scheduled& a, const Scheduled& b) const {
      return std::tie(std::get<0>(a), std::get<1>(a)) > std::tie(std::get<0>(b), std::get<1>(b));
    }
  };

  void Schedule(int64_t time, const Event& event) { events_.emplace(time, scheduled_++, event); }

  void Handle(const Event& event) {
    switch (event.kind) {
      case Event::Kind::kArrive:
        Log("arrive", event.arrival->name);
        Perform(scheduler_.RequestArrived(event.arrival->id, event.arrival->prompt_tokens,
                                          event.arrival->max_output_tokens));
        break;
      case Event::Kind::kCancel:
        Log("cancel", event.arrival->name);
        Perform(scheduler_.RequestCancelled(event.arrival->id));
        break;
      case Event::Kind::kReachStage:
        StartComputing(event.stage, stages_[event.stage].Arrived(event.micro_batch));
        break;
      case Event::Kind::kComputed:
        StartComputing(event.stage, stages_[event.stage].Computed(event.micro_batch));
        SendOn(event.stage + 1, event.micro_batch);
        if (event.stage == 0) {
          Log("first stage done", event.micro_batch);
          Perform(scheduler_.FirstStageDone(event.micro_batch));
        }
        break;
      case Event::Kind::kCompleted:
        Log("completed", event.micro_batch);
        Perform(scheduler_.MicroBatchCompleted(event.micro_batch, DrawStopped(event.micro_batch)));
        break;
    }
  }

  void StartComputing(int stage, std::optional<MicroBatchId> id) {
    if (!id.has_value()) return;
    Schedule(now_ + random_.Between(1, scenario_.longest_stage_time),
             {.kind = Event::Kind::kComputed, .stage = stage, .micro_batch = *id});
  }

  // To the stage, or, past the last one, back to the head.
  void SendOn(int stage, MicroBatchId id) {
    int64_t& free_at = hop_free_at_[stage];
    free_at = std::max(free_at, now_ + random_.Between(0, scenario_.longest_hop_time));
    Schedule(free_at, {.kind = stage == scenario_.stages ? Event::Kind::kCompleted
                                                         : Event::Kind::kReachStage,
                       .stage = stage,
                       .micro_batch = id});
  }

  void Perform(const std::vector<Action>& actions) {
    for (const Action& action : actions) {
      Log(action);
      if (action.kind != Action::Kind::kLaunch) continue;
      std::vector<RequestId>& samples = samples_[action.micro_batch.id];
      for (const BatchEntry& entry : action.micro_batch.entries) {
        if (entry.samples) samples.push_back(entry.request);
      }
      StartComputing(0, stages_[0].Arrived(action.micro_batch.id));
    }
  }

  std::vector<RequestId> DrawStopped(MicroBatchId id) {
    std::vector<RequestId> stopped;
    for (const RequestId request : samples_[id]) {
      if (scenario_.stop_one_in > 0 && random_.OneIn(scenario_.stop_one_in)) {
        stopped.push_back(request);
        Log("stopped", names_[request]);
      }
    }
    samples_.erase(id);
    return stopped;
  }

  void Log(Action action) {
    if (action.kind != Action::Kind::kLaunch) action.request = names_[action.request];
    for (BatchEntry& entry : action.micro_batch.entries) entry.request = names_[entry.request];
    log_ += "  " + ToString(action) + "\n";
  }
  void Log(const char* what, int64_t id) { log_ += what + (" " + std::to_string(id)) + "\n"; }

  const Scenario& scenario_;
  Random random_;
  CheckedScheduler scheduler_;
  std::vector<StageQueue> stages_;
  std::vector<int64_t> hop_free_at_;  // [stage it leads to]
  std::priority_queue<Scheduled, std::vector<Scheduled>, Later> events_;
  std::map<RequestId, RequestId> names_;
  std::map<MicroBatchId, std::vector<RequestId>> samples_;
  int64_t scheduled_ = 0;
  int64_t now_ = 0;
  std::string log_;
};

TEST(SchedulerPropertyTest, EveryPromiseHoldsInRandomPipelines) {
  CheckedScheduler::Counts counts;
  for (uint32_t seed = 0; seed < 2000; ++seed) {
    const Scenario scenario = RandomScenario(seed);
    Pipeline pipeline(scenario, seed);
    ASSERT_EQ(pipeline.Run(), "") << "seed " << seed << "\n" << pipeline.log();
    counts += pipeline.counts();
  }
  // The scenarios reach every corner, and often.
  EXPECT_GT(counts.rejected, 1000);
  EXPECT_GT(counts.finished_length, 10000);
  EXPECT_GT(counts.finished_stop, 1000);
  EXPECT_GT(counts.cancelled_waiting, 500);
  EXPECT_GT(counts.cancelled_idle, 5);
  EXPECT_GT(counts.cancelled_in_flight, 500);
  EXPECT_GT(counts.cancelled_preempted, 10);
  EXPECT_GT(counts.preempted, 1000);
  EXPECT_GT(counts.preempted_prefilling, 100);
  EXPECT_GT(counts.readmitted, 1000);
  EXPECT_GT(counts.chunks_before_previous_completed, 1000);
  EXPECT_GT(counts.shared_prefills, 1000);
  EXPECT_GT(counts.mixed, 1000);
  EXPECT_GT(counts.decodes_short_of_blocks, 100);
}

TEST(SchedulerPropertyTest, TheOldestRequestNeverStarvesInAContestedCache) {
  CheckedScheduler::Counts counts;
  for (uint32_t seed = 0; seed < 2500; ++seed) {
    const Scenario scenario = ContestedScenario(seed);
    Pipeline pipeline(scenario, seed);
    ASSERT_EQ(pipeline.Run(), "") << "seed " << seed << "\n" << pipeline.log();
    counts += pipeline.counts();
  }
  EXPECT_GT(counts.preempted, 1000);
  EXPECT_GT(counts.preempted_for_prefill, 5);
}

TEST(SchedulerPropertyTest, TheSameEventsGiveTheSameActions) {
  for (uint32_t seed = 0; seed < 100; ++seed) {
    const Scenario scenario = RandomScenario(seed);
    Pipeline first(scenario, seed), second(scenario, seed);
    ASSERT_EQ(first.Run(), "");
    ASSERT_EQ(second.Run(), "");
    ASSERT_EQ(first.log(), second.log()) << "seed " << seed;
  }
}

TEST(SchedulerPropertyTest, NoDecisionDependsOnTheIdsOfRequests) {
  for (uint32_t seed = 0; seed < 100; ++seed) {
    const Scenario scenario = RandomScenario(seed);
    Scenario renamed = scenario;
    for (Arrival& arrival : renamed.arrivals) arrival.id = (int64_t{1} << 40) - 3 * arrival.id;
    Pipeline first(scenario, seed), second(renamed, seed);
    ASSERT_EQ(first.Run(), "");
    ASSERT_EQ(second.Run(), "");
    ASSERT_EQ(first.log(), second.log()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace fabricast
