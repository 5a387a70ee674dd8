#include "runtime/engine/scripted_stages.h"

#include <chrono>
#include <utility>

#include "runtime/check.h"

namespace fabricast {
namespace {

using Kind = StageReport::Kind;

// How much a stage's clock may be off.
constexpr std::chrono::microseconds kClockError(200);

}  // namespace

ScriptedStages::ScriptedStages(int stages, uint64_t seed)
    : executors_(FakeStages(stages)), random_(seed) {}

void ScriptedStages::BecomeReady() {
  int64_t generation;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    FABRICAST_CHECK(!ready_);
    ready_ = true;
    generation = ++generation_;
    steps_.clear();
  }
  for (const auto& executor : executors_) executor->Reset();
  listener_->Ready(generation);
}

void ScriptedStages::Lose(const absl::Status& cause) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ready_ = false;
  }
  listener_->Lost(cause);
}

void ScriptedStages::Leave(const absl::Status& cause) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ready_ = false;
  }
  listener_->Gone(cause);
}

void ScriptedStages::Launch(int64_t generation, std::shared_ptr<const Step> step) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!ready_ || generation != generation_) return;
    steps_.push_back(std::move(step));
    ++launched_;
  }
  launch_.notify_one();
}

int64_t ScriptedStages::launched() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return launched_;
}

std::shared_ptr<const Step> ScriptedStages::NextStep() {
  std::unique_lock<std::mutex> lock(mutex_);
  FABRICAST_CHECK(ready_) << "no step will come";
  launch_.wait(lock, [this] { return !steps_.empty(); });
  std::shared_ptr<const Step> step = std::move(steps_.front());
  steps_.pop_front();
  return step;
}

bool ScriptedStages::TryRunStep() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (steps_.empty() || !ready_) return false;
  }
  RunStep();
  return true;
}

void ScriptedStages::RunStep() { Report(Compute(*NextStep())); }

void ScriptedStages::RunPartOfStep() {
  std::vector<StageReport> reports = Compute(*NextStep());
  reports.resize(random_() % reports.size());
  Report(std::move(reports));
}

std::vector<StageReport> ScriptedStages::Compute(const Step& step) {
  std::vector<StageReport> reports;
  Buffer input;
  for (int s = 0; s < count(); ++s) {
    const bool last = s + 1 == count();
    const auto report = [&](Kind kind) -> StageReport& {
      const auto off = kClockError * static_cast<int>(random_() % 3) - kClockError;
      return reports.emplace_back(StageReport{.kind = kind,
                                              .stage = s,
                                              .id = step.micro_batch.id,
                                              .at = std::chrono::steady_clock::now() + off});
    };
    Buffer output(last ? 0 : step.tokens.size() * executors_[s]->activation_bytes_per_token());
    std::vector<SampledToken> sampled;
    if (s > 0) report(Kind::kDelivered);
    report(Kind::kStarted);
    const absl::Status status = executors_[s]->Run(step, input, absl::MakeSpan(output), sampled);
    FABRICAST_CHECK(status.ok()) << status.ToString();
    report(Kind::kComputed).sampled = std::move(sampled);
    if (!last) report(Kind::kSendStarted).bytes = static_cast<int64_t>(output.size());
    input = std::move(output);
  }
  return reports;
}

void ScriptedStages::Report(std::vector<StageReport> reports) {
  // Those of one stage keep their order.
  std::vector<std::deque<StageReport>> by_stage(count());
  for (StageReport& report : reports) by_stage[report.stage].push_back(std::move(report));
  std::vector<StageReport> together;
  for (size_t left = reports.size(); left > 0;) {
    std::deque<StageReport>& from = by_stage[random_() % by_stage.size()];
    if (from.empty()) continue;
    together.push_back(std::move(from.front()));
    from.pop_front();
    --left;
    if (left == 0 || random_() % 3 == 0) {
      listener_->Reported(std::exchange(together, {}));
    }
  }
}

}  // namespace fabricast
