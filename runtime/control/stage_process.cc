#include "runtime/control/stage_process.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "grpcpp/grpcpp.h"
#include "runtime/check.h"
#include "runtime/control/control.grpc.pb.h"
#include "runtime/control/outbox.h"
#include "runtime/control/step_message.h"
#include "runtime/engine/device_stage_worker.h"
#include "runtime/engine/stage_worker.h"

namespace fabricast {
namespace {

using control::FromHead;
using control::FromStage;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kTick(500);
constexpr std::chrono::milliseconds kRetry(200);
// NCCL takes a second or two to join two GPUs; whoever is lost meanwhile is found out by `joined`.
constexpr absl::Duration kJoinDevices = absl::Seconds(30);

Clock::duration ToChrono(absl::Duration duration) {
  return std::chrono::duration_cast<Clock::duration>(absl::ToChronoNanoseconds(duration));
}

// One stream to the head. The owner destroys it when `ended` was called.
class Stream : public grpc::ClientBidiReactor<FromStage, FromHead> {
 public:
  struct Handlers {
    std::function<void(const FromHead&)> received;  // on gRPC's threads, in order
    std::function<void(absl::Status)> ended;        // once; nothing follows
  };

  Stream(const std::string& head, Handlers handlers)
      : handlers_(std::move(handlers)),
        outbox_([this](const FromStage* message) { StartWrite(message); }) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kMaxBytesFromHead);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    channel_ = grpc::CreateCustomChannel(head, grpc::InsecureChannelCredentials(), arguments);
    stub_ = control::Pipeline::NewStub(channel_);
    stub_->async()->Join(&context_, this);
    AddHold();  // for writes from other threads, until Close
    StartRead(&incoming_);
    StartCall();
  }

  void Send(FromStage message) {
    outbox_.Push(std::make_shared<const FromStage>(std::move(message)));
  }

  // Nothing can be sent any more. Idempotent.
  void Close(bool cut) {
    if (cut) context_.TryCancel();
    if (closing_.exchange(true)) return;
    outbox_.Close([this] {
      StartWritesDone();
      RemoveHold();
    });
  }

  void OnReadDone(bool ok) override {
    if (!ok) return Close(/*cut=*/false);
    handlers_.received(incoming_);
    StartRead(&incoming_);
  }
  void OnWriteDone(bool ok) override { outbox_.Written(ok); }
  void OnDone(const grpc::Status& status) override { handlers_.ended(FromGrpc(status)); }

 private:
  const Handlers handlers_;
  grpc::ClientContext context_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<control::Pipeline::Stub> stub_;
  Outbox<FromStage> outbox_;
  FromHead incoming_;
  std::atomic<bool> closing_ = false;
};

class StageProcess : public StageObserver {
 public:
  explicit StageProcess(const StageProcessOptions& options) : options_(options) {}

  absl::Status Run() {
    QuietGrpc();
    absl::StatusOr<std::unique_ptr<TcpEndpoint>> endpoint =
        TcpEndpoint::Listen(options_.ip, 0, options_.secret, options_.transport);
    if (!endpoint.ok()) return endpoint.status();
    endpoint_ = *std::move(endpoint);
    Clock::time_point give_up = Clock::now() + ToChrono(options_.join_timeout);
    bool had_joined = false;
    for (;;) {
      joined_ = false;
      const absl::Status status = Session();
      EndGeneration();
      if (!load_error_.ok()) return load_error_;
      if (status.ok() || !MayRetry(status)) return status;
      if (joined_) {
        had_joined = true;
        give_up = Clock::now() + ToChrono(options_.rejoin_timeout);
        Log(absl::StrCat("stage ", options_.stage, " lost the head: ", status.message()));
      } else if (Clock::now() > give_up) {
        return absl::UnavailableError(
            absl::StrFormat("stage %d: no head at %s%s: %s", options_.stage, options_.head,
                            had_joined ? " any more" : "", status.message()));
      }
      if (Interrupted()) return absl::CancelledError("interrupted");
      std::this_thread::sleep_for(kRetry);
    }
  }

  // StageObserver, on the worker's and the transport's threads.
  void Reported(StageReport report) override {
    const bool last_of_step = report.kind == StageReport::Kind::kSendStarted ||
                              (report.kind == StageReport::Kind::kComputed && last_);
    std::vector<StageReport> reports;
    int64_t generation;
    {
      const std::lock_guard<std::mutex> lock(reports_mutex_);
      reports_.push_back(std::move(report));
      if (!last_of_step) return;
      reports.swap(reports_);
      generation = worker_generation_;
    }
    for (control::Reports& part : ToMessages(reports, generation)) {
      FromStage message;
      *message.mutable_reports() = std::move(part);
      Send(std::move(message));
    }
  }

  void Failed(const absl::Status& status) override {
    // The head names the stage itself.
    absl::string_view message = status.message();
    absl::ConsumePrefix(&message, absl::StrCat("stage ", options_.stage, ": "));
    // What ended a link, or what the executor said, which is neither.
    const bool link = absl::IsUnavailable(status) || absl::IsCancelled(status);
    Fail(absl::Status(status.code(), message), link);
  }

 private:
  // What the main thread waits for.
  struct Event {
    enum class Kind { kMessage, kEnded } kind = Kind::kMessage;
    FromHead message = {};
    absl::Status status = {};
  };

  bool Interrupted() const { return options_.interrupted != nullptr && *options_.interrupted; }

  void Log(absl::string_view line) const {
    if (options_.log != nullptr) options_.log(line);
  }

  // A head that is not there yet, or was and may come back; not one that refuses.
  static bool MayRetry(const absl::Status& status) {
    switch (status.code()) {
      case absl::StatusCode::kUnavailable:
      case absl::StatusCode::kAlreadyExists:
      case absl::StatusCode::kResourceExhausted:
      case absl::StatusCode::kDeadlineExceeded:
      case absl::StatusCode::kUnknown:
        return true;
      default:
        return false;
    }
  }

  // From hello to the end of the stream.
  absl::Status Session() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      events_.clear();
      heard_ = Clock::now();
    }
    ended_ = false;
    hello_ = MakeHello();
    proved_ = false;
    {
      const std::lock_guard<std::mutex> lock(stream_mutex_);
      stream_ = std::make_unique<Stream>(
          options_.head,
          Stream::Handlers{.received = [this](const FromHead& message) { Received(message); },
                           .ended =
                               [this](absl::Status status) {
                                 Post({.kind = Event::Kind::kEnded, .status = std::move(status)});
                               }});
    }
    FromStage hello;
    *hello.mutable_hello() = hello_;
    Send(std::move(hello));
    absl::Status status = Serve();
    {
      const std::lock_guard<std::mutex> lock(stream_mutex_);
      stream_->Close(/*cut=*/!status.ok());
    }
    while (!ended_) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return !events_.empty(); });
      ended_ = events_.front().kind == Event::Kind::kEnded;
      events_.pop_front();
    }
    const std::lock_guard<std::mutex> lock(stream_mutex_);
    stream_.reset();
    return status;
  }

  absl::Status Serve() {
    for (;;) {
      Event event;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        while (events_.empty()) {
          if (Interrupted()) {
            if (interrupted_at_ == Clock::time_point::max()) interrupted_at_ = Clock::now();
            if (Clock::now() - interrupted_at_ >= ToChrono(options_.interrupt_grace)) {
              return absl::CancelledError("interrupted");
            }
          }
          if (Clock::now() - heard_ > ToChrono(options_.silent_after)) {
            return absl::UnavailableError(absl::StrCat(
                "the head has been silent for ", absl::FormatDuration(options_.silent_after)));
          }
          wake_.wait_for(lock, kTick);
        }
        event = std::move(events_.front());
        events_.pop_front();
      }
      if (event.kind == Event::Kind::kEnded) {
        ended_ = true;
        // It may have taken this stage for lost.
        if (event.status.ok() || absl::IsCancelled(event.status)) {
          return absl::UnavailableError("the head hung up");
        }
        return event.status;
      }
      switch (event.message.message_case()) {
        case FromHead::kChallenge:
          if (absl::Status status = Answer(event.message.challenge()); !status.ok()) return status;
          break;
        case FromHead::kLoad:
          joined_ = true;
          if (absl::Status status = Load(event.message.load()); !status.ok()) return status;
          break;
        case FromHead::kConnect:
          Connect(event.message.connect());
          break;
        case FromHead::kGoodbye:
          return absl::OkStatus();
        default:
          return absl::InternalError(
              "the head sent a message of no known kind: run the same "
              "program everywhere");
      }
    }
  }

  control::Hello MakeHello() const {
    control::Hello hello;
    hello.set_protocol(kControlProtocol);
    hello.set_version(options_.version);
    hello.set_stage(options_.stage);
    hello.set_host(HostName());
    hello.set_pid(getpid());
    hello.set_boot_id(BootId());
    for (const auto& [name, sha256] : options_.fingerprints) {
      control::Fingerprint& fingerprint = *hello.add_fingerprints();
      fingerprint.set_name(name);
      fingerprint.set_sha256(sha256);
    }
    hello.set_data_address(endpoint_->address());
    hello.set_nonce(RandomNonce());
    return hello;
  }

  // On gRPC's threads, in order.
  void Received(const FromHead& message) {
    const int64_t now = MonotonicNanoseconds();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      heard_ = Clock::now();
    }
    switch (message.message_case()) {
      case FromHead::kPing: {
        FromStage pong;
        pong.mutable_pong()->set_ping_sent_ns(message.ping().sent_ns());
        pong.mutable_pong()->set_received_ns(now);
        if (options_.describe != nullptr) {
          pong.mutable_pong()->set_description(options_.describe());
        }
        pong.mutable_pong()->set_sent_ns(MonotonicNanoseconds());
        return Send(std::move(pong));
      }
      case FromHead::kStep:
        return Announce(message.step());
      case FromHead::kConnect:
      case FromHead::kGoodbye:
        endpoint_->Abort();  // what it was connecting for is over
        break;
      default:
        break;
    }
    Post({.kind = Event::Kind::kMessage, .message = message});
  }

  void Post(Event event) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      events_.push_back(std::move(event));
    }
    wake_.notify_one();
  }

  void Send(FromStage message) {
    const std::lock_guard<std::mutex> lock(stream_mutex_);
    if (stream_ != nullptr) stream_->Send(std::move(message));
  }

  absl::Status Answer(const control::Challenge& challenge) {
    const std::string claim = Claim(hello_);
    if (challenge.nonce().size() != SharedSecret::kNonceBytes ||
        !options_.secret.Verify("head", {hello_.nonce(), challenge.nonce(), claim},
                                challenge.proof())) {
      return absl::UnauthenticatedError(absl::StrFormat(
          "stage %d: %s does not know the token: give head and stages the same file",
          options_.stage, options_.head));
    }
    proved_ = true;
    FromStage proof;
    proof.set_proof(options_.secret.Prove("stage", {challenge.nonce(), hello_.nonce(), claim}));
    Send(std::move(proof));
    return absl::OkStatus();
  }

  absl::Status Load(const control::Load& load) {
    if (!proved_) return absl::UnauthenticatedError("the head has not proved that it is one");
    const std::string as_sent = load.SerializeAsString();
    if (executor_ == nullptr || as_sent != loaded_) {
      executor_ = nullptr;
      absl::StatusOr<std::unique_ptr<StageExecutor>> executor = options_.load(load);
      if (!executor.ok()) {
        CannotLoad(executor.status());
        return absl::OkStatus();
      }
      executor_ = *std::move(executor);
      loaded_ = as_sent;
    }
    stages_ = load.stages();
    nccl_ = load.nccl();
    last_ = options_.stage + 1 == stages_;
    FromStage loaded;
    loaded.set_loaded(true);
    Send(std::move(loaded));
    return absl::OkStatus();
  }

  // The head hangs up when it has heard, and this process ends.
  void CannotLoad(const absl::Status& status) {
    FromStage failed;
    failed.mutable_failed()->set_generation(-1);
    failed.mutable_failed()->set_code(static_cast<int>(status.code()));
    failed.mutable_failed()->set_message(std::string(status.message()));
    Send(std::move(failed));
    load_error_ = status;
  }

  void Connect(const control::Connect& connect) {
    EndGeneration();
    if (executor_ == nullptr) return;
    executor_->Reset();
    if (absl::Status usable = executor_->usable(); !usable.ok()) return CannotLoad(usable);
    {
      const std::lock_guard<std::mutex> lock(reports_mutex_);
      worker_generation_ = connect.generation();
      failed_ = false;
    }
    TcpGroup group;
    group.session = connect.session();
    group.stage = options_.stage;
    for (const auto& [stage, address] : connect.peers()) group.peers[stage] = address;
    group.on_broken = [this](int, const absl::Status& status) {
      if (!absl::IsCancelled(status)) Fail(status, /*link=*/true);
    };
    absl::StatusOr<std::unique_ptr<StageTransport>> transport =
        endpoint_->Connect(group, absl::Now() + options_.silent_after);
    if (!transport.ok()) {
      if (!absl::IsCancelled(transport.status())) Fail(transport.status(), /*link=*/true);
      return;
    }
    if (absl::Status status = MakeWorker(*std::move(transport)); !status.ok()) {
      if (!absl::IsCancelled(status)) Fail(status, /*link=*/absl::IsUnavailable(status));
      return;
    }
    FromStage connected;
    connected.set_connected(connect.generation());
    Send(std::move(connected));
  }

  absl::Status MakeWorker(std::unique_ptr<StageTransport> joined) {
    std::unique_ptr<StageWorker> worker;
    DeviceExecutor* const device = dynamic_cast<DeviceExecutor*>(executor_.get());
    if (nccl_ && device != nullptr && stages_ > 1) {
      absl::StatusOr<std::unique_ptr<DeviceTransport>> transport =
          options_.join_devices(stages_, std::move(joined), absl::Now() + kJoinDevices);
      if (!transport.ok()) return transport.status();
      worker = MakeDeviceStageWorker(options_.stage, stages_, *device, **transport, *this);
      transport_ = *std::move(transport);
    } else {
      worker = MakeStageWorker(options_.stage, stages_, *executor_, *joined, *this);
      transport_ = std::move(joined);
    }
    const std::lock_guard<std::mutex> lock(worker_mutex_);
    worker_ = std::move(worker);
    return absl::OkStatus();
  }

  // Steps go straight to the worker, without waking the main thread.
  void Announce(const control::Step& message) {
    absl::StatusOr<std::shared_ptr<const Step>> step = FromMessage(message);
    if (!step.ok()) return Fail(step.status(), /*link=*/false);
    const std::lock_guard<std::mutex> lock(worker_mutex_);
    if (worker_ == nullptr || message.generation() != worker_generation_) return;
    worker_->Announce(*std::move(step));
  }

  void EndGeneration() {
    std::unique_ptr<StageWorker> worker;
    {
      const std::lock_guard<std::mutex> lock(worker_mutex_);
      worker = std::move(worker_);
    }
    if (worker == nullptr) return;
    worker->Stop();
    transport_->Close();
    worker = nullptr;
    transport_ = nullptr;
    const std::lock_guard<std::mutex> lock(reports_mutex_);
    reports_.clear();
  }

  // Once a generation: the first says most.
  void Fail(const absl::Status& status, bool link) {
    FromStage message;
    {
      const std::lock_guard<std::mutex> lock(reports_mutex_);
      if (std::exchange(failed_, true)) return;
      message.mutable_failed()->set_generation(worker_generation_);
    }
    message.mutable_failed()->set_code(static_cast<int>(status.code()));
    message.mutable_failed()->set_message(std::string(status.message()));
    message.mutable_failed()->set_link(link);
    Send(std::move(message));
  }

  const StageProcessOptions options_;
  std::unique_ptr<TcpEndpoint> endpoint_;

  // The main thread's.
  control::Hello hello_;
  bool proved_ = false;
  bool joined_ = false;
  Clock::time_point interrupted_at_ = Clock::time_point::max();
  bool ended_ = false;
  std::unique_ptr<StageExecutor> executor_;
  std::string loaded_;  // what the executor was made from
  absl::Status load_error_;
  int stages_ = 0;
  bool nccl_ = false;
  std::unique_ptr<StageTransport> transport_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Event> events_;
  Clock::time_point heard_{};

  std::mutex stream_mutex_;
  std::unique_ptr<Stream> stream_;

  std::mutex worker_mutex_;
  std::unique_ptr<StageWorker> worker_;

  std::mutex reports_mutex_;
  std::atomic<int64_t> worker_generation_ = -1;
  std::atomic<bool> last_ = false;
  bool failed_ = false;
  std::vector<StageReport> reports_;  // of the step that is under way
};

}  // namespace

absl::Status RunStageProcess(const StageProcessOptions& options) {
  FABRICAST_CHECK(options.load != nullptr);
  return StageProcess(options).Run();
}

}  // namespace fabricast
