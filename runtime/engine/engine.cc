#include "runtime/engine/engine.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <variant>

#include "runtime/check.h"
#include "runtime/engine/stage_worker.h"
#include "runtime/transport/loopback.h"

namespace fabricast {

// The head has a thread and a mailbox. What stages did is put there with its time and read when the
// head has something to decide on; only that wakes it. A batch of mail is recorded first, in order
// of time, then acted on at the time it was collected, so that the recorder's time never goes back.
class Engine::Impl : public StageObserver {
 public:
  Impl(const EngineOptions& options, std::vector<std::unique_ptr<StageExecutor>> executors)
      : stages_(static_cast<int>(executors.size())),
        start_(std::chrono::steady_clock::now()),
        recorder_(stages_, options.keep_timeline),
        head_(options.scheduler, options.tokenizer, recorder_, options.log),
        transports_(MakeLoopbackTransports(stages_)) {
    for (int s = 0; s < stages_; ++s) {
      workers_.push_back(std::make_unique<StageWorker>(s, stages_, std::move(executors[s]),
                                                       *transports_[s], *this));
    }
    thread_ = std::thread([this] { Loop(); });
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

  absl::Status WaitUntilIdle() {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return unended_ == 0; });
    return failure_;
  }

  Result Finish() {
    Stop();
    return recorder_.Finish();
  }

  const Timeline& timeline() const { return recorder_.timeline(); }

  // StageObserver.
  void Started(int stage, MicroBatchId id) override {
    Note({.kind = Observation::Kind::kStarted, .stage = stage, .id = id});
  }
  void SendStarted(int stage, MicroBatchId id, int64_t bytes) override {
    Note({.kind = Observation::Kind::kSendStarted, .stage = stage, .id = id, .bytes = bytes});
  }
  void SendDelivered(int stage, MicroBatchId id) override {
    Note({.kind = Observation::Kind::kSendDelivered, .stage = stage, .id = id});
  }
  void Computed(int stage, MicroBatchId id, std::vector<SampledToken> sampled) override {
    const bool last = stage + 1 == stages_;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      Observation observation{.kind = Observation::Kind::kComputed, .stage = stage, .id = id};
      observation.at_s = Now();
      observations_.push_back(observation);
      if (last && stages_ > 1) {
        observation.kind = Observation::Kind::kSendStarted;
        observation.bytes = static_cast<int64_t>(sampled.size() * sizeof(int32_t));
        observations_.push_back(observation);
      }
      if (stage == 0) inputs_.emplace_back(FirstStageDone{id});
      if (last) inputs_.emplace_back(Completed{id, std::move(sampled)});
    }
    if (stage == 0 || last) wake_.notify_one();
  }
  void Failed(int stage, const absl::Status& status) override {
    (void)stage;  // named by the message
    Post(Failure{status});
  }

 private:
  struct Observation {
    enum class Kind { kStarted, kComputed, kSendStarted, kSendDelivered };
    Kind kind = Kind::kStarted;
    int stage = 0;  // of a send: the sender
    MicroBatchId id = -1;
    int64_t bytes = 0;
    double at_s = 0;
  };
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
  struct FirstStageDone {
    MicroBatchId id;
  };
  struct Completed {
    MicroBatchId id;
    std::vector<SampledToken> sampled;
  };
  struct Failure {
    absl::Status status;
  };
  using Input =
      std::variant<Submitted, Cancelled, CancelledAll, FirstStageDone, Completed, Failure>;

  double Now() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

  template <typename Event>
  void Post(Event event) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      inputs_.emplace_back(std::move(event));
    }
    wake_.notify_one();
  }

  void Note(Observation observation) {
    const std::lock_guard<std::mutex> lock(mutex_);
    observation.at_s = Now();
    observations_.push_back(observation);
  }

  void Loop() {
    std::vector<Observation> observations;
    std::vector<Input> inputs;
    for (;;) {
      double now;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return stopping_ || !inputs_.empty(); });
        if (stopping_) return;
        now = Now();
        observations.swap(observations_);
        inputs.swap(inputs_);
      }
      for (const Observation& observation : observations) Record(observation);
      for (Input& input : inputs) {
        std::visit([this, now](auto& event) { Take(event, now); }, input);
      }
      observations.clear();
      inputs.clear();
      FinishEnded();
    }
  }

  void Record(const Observation& seen) {
    if (broken_) return;
    const MicroBatch& micro_batch = head_.step(seen.id).micro_batch;
    const int next = (seen.stage + 1) % stages_;
    switch (seen.kind) {
      case Observation::Kind::kStarted:
        return recorder_.StageStarted(seen.stage, micro_batch, seen.at_s);
      case Observation::Kind::kComputed:
        return recorder_.StageComputed(seen.stage, micro_batch, seen.at_s);
      case Observation::Kind::kSendStarted:
        return recorder_.SendStarted(seen.stage, next, micro_batch, seen.bytes, seen.at_s);
      case Observation::Kind::kSendDelivered:
        return recorder_.SendDelivered(seen.stage, next, micro_batch, seen.at_s);
    }
  }

  void Take(Submitted& event, double now) {
    GenerationListener listener =
        [this, listener = std::move(event.listener)](const GenerationUpdate& update) {
          listener(update);
          if (update.last()) ++ended_;
        };
    if (broken_) {
      GenerationUpdate update;
      update.request = event.id;
      update.error = failure_;
      return listener(update);
    }
    Launch(head_.Submit(event.id, std::move(event.request), std::move(listener), event.at_s, now));
  }

  void Take(const Cancelled& event, double now) {
    if (!broken_) Launch(head_.Cancel(event.id, now));
  }

  void Take(const CancelledAll&, double now) {
    if (broken_) return;
    for (const RequestId id : head_.requests()) Launch(head_.Cancel(id, now));
  }

  void Take(const FirstStageDone& event, double now) {
    if (!broken_) Launch(head_.FirstStageDone(event.id, now));
  }

  void Take(const Completed& event, double now) {
    if (broken_) return;
    if (stages_ > 1) {
      recorder_.SendDelivered(stages_ - 1, 0, head_.step(event.id).micro_batch, now);
    }
    Launch(head_.Completed(event.id, event.sampled, now));
  }

  void Take(const Failure& event, double) {
    if (broken_) return;
    broken_ = true;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      failure_ = event.status;
    }
    head_.Fail(event.status);
  }

  void Launch(const Head::Steps& steps) {
    for (const std::shared_ptr<const Step>& step : steps) {
      // The last stage first: each has posted its buffer when the stage before it sends.
      for (int s = stages_ - 1; s >= 0; --s) workers_[s]->Announce(step);
    }
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
    // With all threads ended nothing is being delivered: closing ends the rest on this thread.
    for (const auto& worker : workers_) worker->Stop();
    for (const auto& transport : transports_) transport->Close();
  }

  const int stages_;
  const std::chrono::steady_clock::time_point start_;

  // The head thread's.
  Recorder recorder_;
  Head head_;
  bool broken_ = false;
  int64_t ended_ = 0;  // requests that heard their last update in this batch of mail

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable idle_;
  bool stopping_ = false;
  RequestId next_id_ = 0;
  int64_t unended_ = 0;
  absl::Status failure_;  // written by the head thread only
  std::vector<Observation> observations_;
  std::vector<Input> inputs_;

  // Destroyed before what they call.
  std::vector<std::unique_ptr<StageTransport>> transports_;
  std::vector<std::unique_ptr<StageWorker>> workers_;
  std::thread thread_;
};

Engine::Engine(const EngineOptions& options, std::vector<std::unique_ptr<StageExecutor>> stages) {
  FABRICAST_CHECK(!stages.empty()) << "an engine without stages";
  impl_ = std::make_unique<Impl>(options, std::move(stages));
}

Engine::~Engine() = default;

RequestId Engine::Submit(GenerationRequest request, GenerationListener listener) {
  return impl_->Submit(std::move(request), std::move(listener));
}

void Engine::Cancel(RequestId id) { impl_->Cancel(id); }

void Engine::CancelAll() { impl_->CancelAll(); }

absl::Status Engine::WaitUntilIdle() { return impl_->WaitUntilIdle(); }

Result Engine::Finish() { return impl_->Finish(); }

const Timeline& Engine::timeline() const { return impl_->timeline(); }

}  // namespace fabricast
