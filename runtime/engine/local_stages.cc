#include "runtime/engine/local_stages.h"

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/check.h"
#include "runtime/engine/stage_worker.h"
#include "runtime/transport/loopback.h"
#include "runtime/transport/stage_transport.h"

namespace fabricast {
namespace {

// Workers and transports serve one generation: after a failure a thread of its own takes them down,
// since the thread that failed cannot join itself, and sets up others. Where both mutexes are held,
// launch_mutex_ was taken first.
class LocalStages : public Stages, public StageObserver {
 public:
  explicit LocalStages(std::vector<std::unique_ptr<StageExecutor>> executors)
      : executors_(std::move(executors)) {}
  ~LocalStages() override { Stop(); }

  int count() const override { return static_cast<int>(executors_.size()); }

  void Start(StagesListener& listener) override {
    listener_ = &listener;
    SetUp();
    BeReady(0);
    recovery_ = std::thread([this] { RecoverAlways(); });
  }

  void Launch(int64_t generation, std::shared_ptr<const Step> step) override {
    const std::lock_guard<std::mutex> lock(launch_mutex_);
    if (generation != generation_) return;
    // The last stage first: each has posted its buffer when the stage before it sends.
    for (int s = count() - 1; s >= 0; --s) workers_[s]->Announce(step);
  }

  void Stop() override {
    {
      const std::lock_guard<std::mutex> lock(report_mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    if (recovery_.joinable()) recovery_.join();
    TakeDown();
  }

  // StageObserver.
  void Reported(StageReport report) override {
    std::vector<StageReport> reports;
    reports.push_back(std::move(report));
    const std::lock_guard<std::mutex> lock(report_mutex_);
    if (!lost_ && !stopping_) listener_->Reported(std::move(reports));
  }
  void Failed(const absl::Status& status) override {
    {
      const std::lock_guard<std::mutex> lock(report_mutex_);
      if (lost_ || stopping_) return;
      lost_ = true;
      listener_->Lost(status);
    }
    wake_.notify_one();
  }

 private:
  void SetUp() {
    transports_ = MakeLoopbackTransports(count());
    for (int s = 0; s < count(); ++s) {
      workers_.push_back(MakeStageWorker(s, count(), *executors_[s], *transports_[s], *this));
    }
  }

  void BeReady(int64_t generation) {
    {
      const std::lock_guard<std::mutex> lock(launch_mutex_);
      generation_ = generation;
    }
    const std::lock_guard<std::mutex> lock(report_mutex_);
    lost_ = false;
    if (!stopping_) listener_->Ready(generation);
  }

  void TakeDown() {
    {
      const std::lock_guard<std::mutex> lock(launch_mutex_);
      generation_ = kNone;
    }
    for (const auto& worker : workers_) worker->Stop();
    for (const auto& transport : transports_) transport->Close();
    workers_.clear();
    transports_.clear();
  }

  void RecoverAlways() {
    for (int64_t generation = 1;; ++generation) {
      {
        std::unique_lock<std::mutex> lock(report_mutex_);
        wake_.wait(lock, [this] { return stopping_ || lost_; });
        if (stopping_) return;
      }
      TakeDown();
      for (size_t s = 0; s < executors_.size(); ++s) {
        executors_[s]->Reset();
        const absl::Status usable = executors_[s]->usable();
        if (usable.ok()) continue;
        const std::lock_guard<std::mutex> lock(report_mutex_);
        if (stopping_) return;
        return listener_->Gone(
            absl::Status(usable.code(), absl::StrCat("stage ", s, ": ", usable.message())));
      }
      SetUp();
      BeReady(generation);
    }
  }

  static constexpr int64_t kNone = -1;

  const std::vector<std::unique_ptr<StageExecutor>> executors_;
  StagesListener* listener_ = nullptr;

  std::mutex launch_mutex_;
  int64_t generation_ = kNone;

  std::mutex report_mutex_;  // held while the listener is called
  std::condition_variable wake_;
  bool lost_ = false;
  bool stopping_ = false;

  // Of the generation; changed while there is none.
  std::vector<std::unique_ptr<StageTransport>> transports_;
  std::vector<std::unique_ptr<StageWorker>> workers_;

  std::thread recovery_;
};

}  // namespace

std::unique_ptr<Stages> MakeLocalStages(std::vector<std::unique_ptr<StageExecutor>> executors) {
  FABRICAST_CHECK(!executors.empty()) << "a pipeline without stages";
  return std::make_unique<LocalStages>(std::move(executors));
}

}  // namespace fabricast
