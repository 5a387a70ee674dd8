#include "benchmarks/engine/step_loops.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "benchmarks/engine/measure.h"
#include "runtime/check.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/head.h"
#include "runtime/engine/local_stages.h"
#include "runtime/metrics/recorder.h"

namespace fabricast {
namespace {

constexpr int64_t kBlockTokens = 16;
// Steps before the clock starts: buffers have grown, the processor has woken up.
constexpr int64_t kWarmUp = 20;

int64_t OutputTokens(const StepLoad& load) { return 1 + kWarmUp + load.steps / load.stages; }

SchedulerOptions OptionsFor(const StepLoad& load) {
  const int64_t blocks = OutputTokens(load) / kBlockTokens + 2;
  // Admissions leave 1 % free.
  return {.max_in_flight = load.stages,
          .max_batch_tokens = 2 * load.running + 1,
          .max_chunk_tokens = load.running,
          .max_running = load.running,
          .kv_block_tokens = kBlockTokens,
          .kv_blocks = load.running * blocks * 102 / 100 + 2};
}

// Ordinary text in any vocabulary of 4,000 and more.
int32_t TokenOf(RequestId request, int64_t position) {
  return static_cast<int32_t>((request * 31 + position * 7) % 4000);
}

// Starts when all requests are decoding, ends when the first is over.
class StepClock {
 public:
  explicit StepClock(const StepLoad& load) : load_(load) {
    starts_.reserve(load.steps + 4 * load.stages + kWarmUp);
  }

  void Started(const MicroBatch& micro_batch, bool released) {
    if (over_) return;
    if (released) {
      over_ = true;
      if (starts_.empty()) return;
      cpu_s_ = CpuSeconds() - cpu_s_;
      return;
    }
    if (prefilled_ < load_.running) {
      for (const BatchEntry& entry : micro_batch.entries) prefilled_ += entry.decode ? 0 : 1;
      return;
    }
    if (warm_ < kWarmUp / 2) {
      ++warm_;
      return;
    }
    if (starts_.empty()) cpu_s_ = CpuSeconds();
    starts_.push_back(WallSeconds());
  }

  StepTimes times() const {
    FABRICAST_CHECK(over_ && starts_.size() > 1) << starts_.size() << " steps were timed";
    StepTimes times;
    for (size_t i = 1; i < starts_.size(); ++i) {
      times.wall_s.push_back(starts_[i] - starts_[i - 1] - load_.compute_s);
    }
    times.cpu_s = cpu_s_ / static_cast<double>(starts_.size());
    return times;
  }

 private:
  const StepLoad& load_;
  int64_t prefilled_ = 0;
  int64_t warm_ = 0;
  bool over_ = false;
  double cpu_s_ = 0;
  std::vector<double> starts_;
};

void Sample(const MicroBatch& micro_batch, std::vector<SampledToken>& sampled) {
  for (const BatchEntry& entry : micro_batch.entries) {
    if (!entry.samples) continue;
    sampled.emplace_back().token = TokenOf(entry.request, entry.first_token + entry.tokens);
  }
}

class NullExecutor : public StageExecutor {
 public:
  NullExecutor(StepClock* clock, bool last, double compute_s)
      : clock_(clock), last_(last), compute_s_(compute_s) {}
  int64_t activation_bytes_per_token() const override { return 0; }
  absl::Status Run(const Step& step, absl::Span<const std::byte>, absl::Span<std::byte>,
                   std::vector<SampledToken>& sampled) override {
    if (clock_ != nullptr) clock_->Started(step.micro_batch, !step.released.empty());
    if (compute_s_ > 0) {
      const double end = WallSeconds() + compute_s_;
      while (WallSeconds() < end) {
      }
    }
    if (last_) Sample(step.micro_batch, sampled);
    return absl::OkStatus();
  }
  void Reset() override {}  // keeps nothing of a request

 private:
  StepClock* const clock_;  // of the first stage
  const bool last_;
  const double compute_s_;
};

// What clients heard.
struct Heard {
  int64_t tokens = 0;
  int64_t ended = 0;
  std::string text;  // of request 0

  GenerationListener listener() {
    return [this](const GenerationUpdate& update) {
      tokens += update.token.has_value() ? 1 : 0;
      ended += update.finished == FinishReason::kLength ? 1 : 0;
      if (update.request == 0) text += update.text;
    };
  }

  void Check(const StepLoad& load) const {
    FABRICAST_CHECK(ended == load.running) << ended << " of " << load.running << " ended";
    FABRICAST_CHECK(tokens == load.running * OutputTokens(load)) << tokens << " tokens";
    std::string expected;
    if (load.tokenizer != nullptr) {
      std::vector<int32_t> ids;
      for (int64_t i = 0; i < OutputTokens(load); ++i) ids.push_back(TokenOf(0, 1 + i));
      expected = load.tokenizer->Decode(ids, /*skip_special_tokens=*/true);
      FABRICAST_CHECK(!expected.empty());
    }
    FABRICAST_CHECK(text == expected) << "text '" << text << "', not '" << expected << "'";
  }
};

GenerationRequest RequestFor(const StepLoad& load, RequestId id) {
  GenerationRequest request;
  request.prompt = {TokenOf(id, 0)};
  request.max_output_tokens = OutputTokens(load);
  return request;
}

// As the engine drives the head, on one thread.
class HeadLoop {
 public:
  explicit HeadLoop(const StepLoad& load)
      : load_(load),
        clock_(load),
        recorder_(1, /*keep_timeline=*/false),
        head_(OptionsFor(load), load.tokenizer, recorder_) {
    head_.Ready(WallSeconds());
  }

  StepTimes Run() {
    Heard heard;
    const GenerationListener listener = heard.listener();
    for (RequestId id = 0; id < load_.running; ++id) {
      Queue(head_.Submit(id, RequestFor(load_, id), listener, WallSeconds(), WallSeconds()));
    }
    std::vector<SampledToken> sampled;
    while (!queued_.empty()) {
      const std::shared_ptr<const Step> step = std::move(queued_.back());
      queued_.pop_back();
      const MicroBatch& micro_batch = step->micro_batch;
      const double start = WallSeconds();
      clock_.Started(micro_batch, !step->released.empty());
      sampled.clear();
      Sample(micro_batch, sampled);
      const double end = WallSeconds();
      recorder_.StageStarted(0, micro_batch, start);
      recorder_.StageComputed(0, micro_batch, end);
      Queue(head_.FirstStageDone(micro_batch.id, end));
      Queue(head_.Completed(micro_batch.id, sampled, end));
    }
    // The loop ends with the requests: no step follows that could tell.
    clock_.Started({}, /*released=*/true);
    heard.Check(load_);
    return clock_.times();
  }

 private:
  void Queue(const Head::Steps& steps) {
    queued_.insert(queued_.end(), steps.begin(), steps.end());
  }

  const StepLoad& load_;
  StepClock clock_;
  Recorder recorder_;
  Head head_;
  std::vector<std::shared_ptr<const Step>> queued_;
};

}  // namespace

StepTimes TimeEngine(const StepLoad& load) {
  StepClock clock(load);
  std::vector<std::unique_ptr<StageExecutor>> stages;
  for (int s = 0; s < load.stages; ++s) {
    stages.push_back(std::make_unique<NullExecutor>(s == 0 ? &clock : nullptr, s + 1 == load.stages,
                                                    load.compute_s));
  }
  Engine engine({.scheduler = OptionsFor(load), .tokenizer = load.tokenizer},
                MakeLocalStages(std::move(stages)));
  Heard heard;
  const GenerationListener listener = heard.listener();
  for (RequestId id = 0; id < load.running; ++id) engine.Submit(RequestFor(load, id), listener);
  FABRICAST_CHECK(engine.WaitUntilIdle().ok());
  heard.Check(load);
  // One more, which is not timed: its step tells the clock that the others are over.
  GenerationRequest last;
  last.prompt = {0};
  last.max_output_tokens = 1;
  engine.Submit(std::move(last), [](const GenerationUpdate&) {});
  FABRICAST_CHECK(engine.WaitUntilIdle().ok());
  engine.Finish();
  return clock.times();
}

StepTimes TimeHead(const StepLoad& load) {
  FABRICAST_CHECK(load.stages == 1) << load.stages;
  return HeadLoop(load).Run();
}

StepTimes TimeScheduler(const StepLoad& load) {
  FABRICAST_CHECK(load.stages == 1) << load.stages;
  StepClock clock(load);
  Scheduler scheduler(OptionsFor(load));
  std::vector<MicroBatch> queued;
  int64_t finished = 0;
  const auto take = [&](absl::Span<const Action> actions) {
    for (const Action& action : actions) {
      finished += action.kind == Action::Kind::kFinish ? 1 : 0;
      if (action.kind == Action::Kind::kLaunch) queued.push_back(action.micro_batch);
    }
  };
  for (RequestId id = 0; id < load.running; ++id) {
    take(scheduler.RequestArrived(id, 1, OutputTokens(load)));
  }
  while (!queued.empty()) {
    const MicroBatch micro_batch = std::move(queued.back());
    queued.pop_back();
    clock.Started(micro_batch, finished > 0);
    take(scheduler.FirstStageDone(micro_batch.id));
    take(scheduler.MicroBatchCompleted(micro_batch.id));
  }
  clock.Started({}, /*released=*/true);
  FABRICAST_CHECK(finished == load.running) << finished << " finished";
  return clock.times();
}

std::vector<double> TimeHandOvers(int rounds, bool asleep) {
  std::mutex mutex;
  std::condition_variable wake[2];
  std::atomic<int> turn = 0;
  // Both wait for their turn and give it to the other, as head and stage do.
  const auto play = [&](int self) {
    if (asleep) {
      std::unique_lock<std::mutex> lock(mutex);
      wake[self].wait(lock, [&] { return turn == self; });
      turn = 1 - self;
      lock.unlock();
      wake[1 - self].notify_one();
      return;
    }
    while (turn != self) {
    }
    turn = 1 - self;
  };
  std::thread other([&] {
    for (int i = 0; i < rounds; ++i) play(1);
  });
  std::vector<double> seconds;
  seconds.reserve(rounds);
  double start = WallSeconds();
  for (int i = 0; i < rounds; ++i) {
    play(0);
    const double now = WallSeconds();
    seconds.push_back((now - start) / 2);
    start = now;
  }
  other.join();
  return seconds;
}

}  // namespace fabricast
