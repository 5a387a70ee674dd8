#include "runtime/engine/engine.h"

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_format.h"
#include "runtime/engine/causal_order.h"

namespace fabricast {
namespace {

// Of losses with one cause.
struct Losses {
  int64_t times = 0;
  int64_t requests = 0;
};

// Causes may name a request, or an address: more of them than this are counted together.
constexpr size_t kNamedCauses = 8;

// That shares nothing with another thread's: ThreadSanitizer cannot see how Debian's absl::Status
// counts references.
absl::Status OwnCopy(const absl::Status& status) {
  return absl::Status(status.code(), status.message());
}

}  // namespace

// The head has a thread and a mailbox. What stages did is put there with its time and read when the
// head has something to decide on; only that wakes it. A batch of mail is recorded first, in an
// order in which it can have happened, then acted on at the time it was collected, so that the
// head's time never goes back. Clients come first: none of them can know yet what stages did since.
class Engine::Impl : public StagesListener {
 public:
  Impl(const EngineOptions& options, std::unique_ptr<Stages> stages)
      : stages_(std::move(stages)),
        last_stage_(stages_->count() - 1),
        start_(std::chrono::steady_clock::now()),
        recorder_(stages_->count(), options.keep_timeline, options.keep_events),
        head_(options.scheduler, options.tokenizer, recorder_, options.log),
        order_(stages_->count()) {
    thread_ = std::thread([this] { Loop(); });
    stages_->Start(*this);
  }

  ~Impl() override { Stop(); }

  RequestId Submit(GenerationRequest request, GenerationListener listener) {
    RequestId id;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      id = next_id_++;
      ++unended_;
      inputs_.emplace_back(Submitted{id, std::move(request), std::move(listener), Now()});
    }
    wake_.notify_one();
    return id;
  }

  void Cancel(RequestId id) { Post(Cancelled{id}); }
  void CancelAll() { Post(CancelledAll{}); }

  absl::Status WaitUntilReady() {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return was_ready_ || !failure_.ok(); });
    return failure_;
  }

  absl::Status WaitUntilIdle() {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return unended_ == 0; });
    return failure_;
  }

  absl::Status status() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return failure_;
  }

  Result Finish() {
    Stop();
    Result result = recorder_.Finish();
    for (const auto& [cause, losses] : losses_) {
      result.add_warnings(
          absl::StrFormat("the pipeline was lost (times: %d, failed requests: %d): %s",
                          losses.times, losses.requests, cause));
    }
    return result;
  }

  const Timeline& timeline() const { return recorder_.timeline(); }

  // StagesListener.
  void Ready(int64_t generation) override { Post(StagesReady{generation}); }
  void Lost(const absl::Status& cause) override { Post(StagesLost{OwnCopy(cause)}); }
  void Gone(const absl::Status& cause) override { Post(StagesGone{OwnCopy(cause)}); }
  void Reported(std::vector<StageReport> reports) override {
    bool wake = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (StageReport& report : reports) {
        wake = wake || holding_ || Decides(report);
        reports_.push_back(std::move(report));
      }
      must_decide_ = must_decide_ || wake;
    }
    if (wake) wake_.notify_one();
  }

 private:
  struct Submitted {
    RequestId id;
    GenerationRequest request;
    GenerationListener listener;
    double at_s;
  };
  struct Cancelled {
    RequestId id;
  };
  struct CancelledAll {};
  struct StagesReady {
    int64_t generation;
  };
  struct StagesLost {
    absl::Status cause;
  };
  struct StagesGone {
    absl::Status cause;
  };
  using Input =
      std::variant<Submitted, Cancelled, CancelledAll, StagesReady, StagesLost, StagesGone>;

  double SecondsAt(std::chrono::steady_clock::time_point at) const {
    return std::chrono::duration<double>(at - start_).count();
  }
  double Now() const { return SecondsAt(std::chrono::steady_clock::now()); }

  template <typename Event>
  void Post(Event event) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      inputs_.emplace_back(std::move(event));
    }
    wake_.notify_one();
  }

  bool Decides(const StageReport& report) const {
    return report.kind == StageReport::Kind::kComputed &&
           (report.stage == 0 || report.stage == last_stage_);
  }

  void Loop() {
    std::vector<StageReport> reports;
    std::vector<Input> inputs;
    for (;;) {
      double now;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        holding_ = order_.holds_any();
        must_decide_ = must_decide_ || (holding_ && !reports_.empty());
        wake_.wait(lock, [this] { return stopping_ || must_decide_ || !inputs_.empty(); });
        if (stopping_) return;
        now = Now();
        reports.swap(reports_);
        inputs.swap(inputs_);
        must_decide_ = false;
      }
      for (StageReport& report : reports) order_.Add(std::move(report), seen_);
      for (const StageReport& report : seen_) Record(report);
      for (Input& input : inputs) {
        std::visit([this, now](auto& event) { Take(event, now); }, input);
      }
      DecideOnSeen(now);
      reports.clear();
      inputs.clear();
      FinishEnded();
    }
  }

  void Record(const StageReport& seen) {
    const MicroBatch& micro_batch = head_.step(seen.id).micro_batch;
    const double at = SecondsAt(seen.at);
    switch (seen.kind) {
      case StageReport::Kind::kDelivered:
        return recorder_.SendDelivered(seen.stage - 1, seen.stage, micro_batch, at);
      case StageReport::Kind::kStarted:
        return recorder_.StageStarted(seen.stage, micro_batch, at);
      case StageReport::Kind::kSendStarted:
        return recorder_.SendStarted(seen.stage, seen.stage + 1, micro_batch, seen.bytes, at);
      case StageReport::Kind::kComputed:
        recorder_.StageComputed(seen.stage, micro_batch, at);
        if (seen.stage == last_stage_ && last_stage_ > 0) {
          const auto bytes = static_cast<int64_t>(seen.sampled.size() * sizeof(int32_t));
          recorder_.SendStarted(last_stage_, 0, micro_batch, bytes, at);
        }
        return;
    }
  }

  void DecideOnSeen(double now) {
    for (const StageReport& report : seen_) {
      if (Decides(report)) Decide(report, now);
    }
    seen_.clear();
  }

  void Decide(const StageReport& seen, double now) {
    if (seen.stage == 0) Launch(head_.FirstStageDone(seen.id, now));
    if (seen.stage < last_stage_) return;
    if (last_stage_ > 0) {
      recorder_.SendDelivered(last_stage_, 0, head_.step(seen.id).micro_batch, now);
    }
    Launch(head_.Completed(seen.id, seen.sampled, now));
  }

  void Take(Submitted& event, double now) {
    GenerationListener listener =
        [this, listener = std::move(event.listener)](const GenerationUpdate& update) {
          listener(update);
          if (update.last()) ++ended_;
        };
    if (gone_) {
      GenerationUpdate update;
      update.request = event.id;
      update.error = failure_;
      return listener(update);
    }
    Launch(head_.Submit(event.id, std::move(event.request), std::move(listener), event.at_s, now));
  }

  void Take(const Cancelled& event, double now) {
    if (!gone_) Launch(head_.Cancel(event.id, now));
  }

  void Take(const CancelledAll&, double now) {
    if (gone_) return;
    for (const RequestId id : head_.requests()) Launch(head_.Cancel(id, now));
  }

  // What was seen is of the generation before: the next one reports when it has steps.
  void Take(const StagesReady& event, double now) {
    DecideOnSeen(now);
    generation_ = event.generation;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      was_ready_ = true;
    }
    idle_.notify_all();
    Launch(head_.Ready(now));
  }

  void Take(const StagesLost& event, double now) {
    DecideOnSeen(now);
    order_.Clear();
    Count(event.cause, head_.Lost(event.cause, now));
  }

  void Take(const StagesGone& event, double now) {
    DecideOnSeen(now);
    gone_ = true;
    order_.Clear();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      failure_ = event.cause;
    }
    idle_.notify_all();
    Count(event.cause, head_.Gone(event.cause, now));
  }

  void Count(const absl::Status& cause, int64_t requests) {
    std::string name(cause.message());
    if (losses_.size() >= kNamedCauses && losses_.count(name) == 0) name = "other causes";
    ++losses_[name].times;
    losses_[name].requests += requests;
  }

  void Launch(const Head::Steps& steps) {
    for (const std::shared_ptr<const Step>& step : steps) stages_->Launch(generation_, step);
  }

  void FinishEnded() {
    if (ended_ == 0) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    unended_ -= ended_;
    ended_ = 0;
    if (unended_ == 0) idle_.notify_all();
  }

  void Stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    if (thread_.joinable()) thread_.join();
    stages_->Stop();
  }

  const std::unique_ptr<Stages> stages_;
  const int last_stage_;
  const std::chrono::steady_clock::time_point start_;

  // The head thread's.
  Recorder recorder_;
  Head head_;
  CausalOrder order_;
  std::vector<StageReport> seen_;  // in this batch of mail, and not decided on yet
  int64_t generation_ = -1;
  bool gone_ = false;
  int64_t ended_ = 0;  // requests that heard their last update in this batch of mail
  std::map<std::string, Losses> losses_;  // by cause

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable idle_;  // no request is unended, or the stages are ready or gone
  bool stopping_ = false;
  bool was_ready_ = false;
  RequestId next_id_ = 0;
  int64_t unended_ = 0;
  absl::Status failure_;  // written by the head thread only
  std::vector<StageReport> reports_;
  bool must_decide_ = false;  // on one of them
  bool holding_ = false;      // order_ does: any report may set another free
  std::vector<Input> inputs_;

  std::thread thread_;
};

Engine::Engine(const EngineOptions& options, std::unique_ptr<Stages> stages)
    : impl_(std::make_unique<Impl>(options, std::move(stages))) {}

Engine::~Engine() = default;

RequestId Engine::Submit(GenerationRequest request, GenerationListener listener) {
  return impl_->Submit(std::move(request), std::move(listener));
}

void Engine::Cancel(RequestId id) { impl_->Cancel(id); }

void Engine::CancelAll() { impl_->CancelAll(); }

absl::Status Engine::WaitUntilReady() const { return impl_->WaitUntilReady(); }

absl::Status Engine::WaitUntilIdle() { return impl_->WaitUntilIdle(); }

absl::Status Engine::status() const { return impl_->status(); }

Result Engine::Finish() { return impl_->Finish(); }

const Timeline& Engine::timeline() const { return impl_->timeline(); }

}  // namespace fabricast
