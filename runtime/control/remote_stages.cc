#include "runtime/control/remote_stages.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/resource_quota.h"
#include "runtime/check.h"
#include "runtime/control/clock_offset.h"
#include "runtime/control/control.grpc.pb.h"
#include "runtime/control/outbox.h"
#include "runtime/control/report_order.h"
#include "runtime/control/step_message.h"

namespace fabricast {
namespace {

using control::FromHead;
using control::FromStage;
using Clock = std::chrono::steady_clock;

// Peers that have not yet proved the secret: so many at a time, so long each.
constexpr int kMaxStrangers = 64;
constexpr std::chrono::seconds kStrangerTime(5);

// A loss is told when it has had so long to become clear: a process that ends breaks its stream and
// its neighbours' links too, and those tell less.
constexpr std::chrono::milliseconds kClearUp(300);

// How long Stop waits for stages to hear that the run is over.
constexpr std::chrono::seconds kGoodbye(2);

// What says most about a loss.
enum Certainty { kLinkBroke, kStreamBroke, kItSaidSo };

std::string Seconds(absl::Duration duration) {
  return absl::StrFormat("%g s", absl::ToDoubleSeconds(duration));
}

Clock::duration ToChrono(absl::Duration duration) {
  return std::chrono::duration_cast<Clock::duration>(absl::ToChronoNanoseconds(duration));
}

class Head;

// One stage's stream, from before it has said who it is. Deletes itself.
class Peer : public grpc::ServerBidiReactor<FromStage, FromHead>,
             public std::enable_shared_from_this<Peer> {
 public:
  static Peer* Make(Head& head, grpc::CallbackServerContext& context) {
    auto peer = std::make_shared<Peer>(head, context);
    peer->self_ = peer;
    peer->StartRead(&peer->incoming_);
    return peer.get();
  }
  Peer(Head& head, grpc::CallbackServerContext& context)
      : head_(head),
        context_(context),
        address_(context.peer()),
        outbox_([this](const FromHead* message) { StartWrite(message); }) {}

  void Send(FromHead message) { Send(std::make_shared<const FromHead>(std::move(message))); }
  void Send(std::shared_ptr<const FromHead> message) { outbox_.Push(std::move(message)); }

  // Ends the stream when what was sent has left.
  void End(const absl::Status& status) {
    if (ending_.exchange(true)) return;
    outbox_.Close([this, status] { Finish(ToGrpc(status)); });
  }

  // Ends it now: the other side may take nothing any more.
  void Cut() {
    if (!ending_) context_.TryCancel();
  }

  const std::string& address() const { return address_; }

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override { outbox_.Written(ok); }
  void OnCancel() override;
  void OnDone() override;

 private:
  Head& head_;
  grpc::CallbackServerContext& context_;
  const std::string address_;
  Outbox<FromHead> outbox_;
  FromStage incoming_;
  std::atomic<bool> ending_ = false;
  std::shared_ptr<Peer> self_;  // until OnDone
};

// A process that is there, with its secret proved.
struct Member {
  std::shared_ptr<Peer> peer;
  control::Hello hello;
  bool loaded = false;
  bool connected = false;  // to its neighbours, in this generation
  bool same_clock = false;
  ClockOffset clock;
  ReportReader reader;
  Clock::time_point heard{};
  std::string description;  // in its own words

  std::string where() const { return absl::StrCat(hello.host(), ", pid ", hello.pid()); }
};

struct Stranger {
  std::shared_ptr<Peer> peer;
  Clock::time_point since{};
  std::optional<control::Hello> hello;
  std::string nonce;  // ours
};

class Head : public RemoteStages, public control::Pipeline::CallbackService {
 public:
  explicit Head(const RemoteStagesOptions& options)
      : options_(options),
        boot_id_(BootId()),
        members_(options.loads.size()),
        causes_(options.loads.size()) {}

  ~Head() override { Stop(); }

  absl::Status ListenNow() {
    QuietGrpc();
    grpc::ServerBuilder builder;
    int port = 0;
    const bool is_v6 = options_.ip.find(':') != std::string::npos;
    const std::string at = is_v6 ? absl::StrCat("[", options_.ip, "]") : options_.ip;
    builder.AddListeningPort(absl::StrCat(at, ":", options_.port),
                             grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    builder.SetMaxReceiveMessageSize(kMaxBytesFromStage);
    builder.SetMaxSendMessageSize(kMaxBytesFromHead);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 1);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 4096);
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 5000);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 10000);
    // Bounds what strangers make gRPC keep: it reads a message before it finds it too long. Steps
    // and reports of a run take far less.
    grpc::ResourceQuota quota("fabricast");
    quota.Resize(size_t{24} << 20);
    builder.SetResourceQuota(quota);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
      return absl::UnavailableError(
          absl::StrCat("the head cannot listen at ", at, ":", options_.port,
                       ": the address is not this machine's, or the port is taken; choose another "
                       "with --head or in the topology"));
    }
    address_ = absl::StrCat(at, ":", port);
    return absl::OkStatus();
  }

  std::string address() const override { return address_; }
  int count() const override { return static_cast<int>(members_.size()); }

  void Start(StagesListener& listener) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    FABRICAST_CHECK(listener_ == nullptr) << "started twice";
    listener_ = &listener;
    give_up_ = Clock::now() + ToChrono(options_.join_timeout);
    monitor_ = std::thread([this] { Monitor(); });
    ConnectIfComplete();
  }

  void Launch(int64_t generation, std::shared_ptr<const Step> step) override {
    FromHead message;
    *message.mutable_step() = ToMessage(*step, generation);
    const auto shared = std::make_shared<const FromHead>(std::move(message));
    std::vector<std::shared_ptr<Peer>> peers;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!ready_ || generation != generation_ || loss_.has_value()) return;
      order_.Launched(step->micro_batch);
      for (const std::unique_ptr<Member>& member : members_) peers.push_back(member->peer);
    }
    // The first stage first: the others can wait until its activations are on their way.
    for (const std::shared_ptr<Peer>& peer : peers) peer->Send(shared);
  }

  void Stop() override {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      if (stopped_) return;
      stopped_ = true;
      listener_ = nullptr;
      for (const std::unique_ptr<Member>& member : members_) {
        if (member == nullptr) continue;
        FromHead goodbye;
        goodbye.set_goodbye(true);
        member->peer->Send(std::move(goodbye));
        member->peer->End(absl::OkStatus());
      }
      for (auto& [peer, stranger] : strangers_) {
        stranger.peer->End(absl::UnavailableError("the run is over"));
      }
      wake_.notify_all();
      // A stage that has heard it ends its side; others are cut off below.
      wake_.wait_for(lock, kGoodbye, [this] { return streams_ == 0; });
    }
    if (monitor_.joinable()) monitor_.join();
    if (server_ == nullptr) return;  // it could not listen
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  void ProcessEnded(int stage, absl::string_view how, bool fatal) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stopped_) return;
    const std::string cause = absl::StrCat(Name(stage), " ", how);
    causes_[stage] = std::string(how);
    const absl::Status status = absl::UnavailableError(cause);
    if (members_[stage] != nullptr) {
      Drop(stage, status, kItSaidSo);
    } else if (loss_.has_value()) {
      Lose(status, kItSaidSo);  // the stream broke first
    }
    if (fatal) Leave(status);
  }

  std::vector<std::string> Description() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::string> lines;
    for (size_t s = 0; s < last_seen_.size(); ++s) lines.push_back(last_seen_[s]);
    return lines;
  }

  // control::Pipeline.
  grpc::ServerBidiReactor<FromStage, FromHead>* Join(
      grpc::CallbackServerContext* context) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    Peer* const peer = Peer::Make(*this, *context);
    ++streams_;
    if (stopped_ || static_cast<int>(strangers_.size()) >= kMaxStrangers) {
      peer->End(absl::ResourceExhaustedError("too many peers that have not said who they are"));
      return peer;
    }
    strangers_[peer] = {
        .peer = peer->shared_from_this(), .since = Clock::now(), .hello = {}, .nonce = ""};
    return peer;
  }

  // Of a peer, in its order.
  void Received(Peer& peer, const FromStage& message) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stopped_) return;
    if (const auto it = strangers_.find(&peer); it != strangers_.end()) {
      const absl::Status status = ReceivedFromStranger(it->second, message);
      if (!status.ok()) {
        strangers_.erase(&peer);
        peer.End(status);
      }
      return;
    }
    const int stage = StageOf(peer);
    if (stage < 0) return;  // dropped
    const absl::Status status = ReceivedFromMember(stage, message);
    if (!status.ok()) {
      Drop(stage,
           absl::UnavailableError(
               absl::StrCat(Name(stage), " breaks the protocol: ", status.message())),
           kItSaidSo);
    }
  }

  void StreamBroke(Peer& peer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    strangers_.erase(&peer);
    const int stage = StageOf(peer);
    if (stage >= 0 && !stopped_) {
      Drop(stage,
           absl::UnavailableError(absl::StrCat(Name(stage), " (", members_[stage]->where(),
                                               ") closed its connection: it ended or was "
                                               "killed")),
           kStreamBroke);
    }
    peer.End(absl::UnavailableError("the stream broke"));
  }

  void StreamEnded() {
    const std::lock_guard<std::mutex> lock(mutex_);
    --streams_;
    wake_.notify_all();
  }

 private:
  struct Loss {
    absl::Status cause;
    Certainty certainty = kLinkBroke;
    Clock::time_point tell_at{};
  };

  std::string Name(int stage) const {
    std::string name = absl::StrCat("stage ", stage);
    if (stage < static_cast<int>(options_.names.size())) {
      absl::StrAppend(&name, " (", options_.names[stage], ")");
    }
    return name;
  }

  void Log(absl::string_view line) const {
    if (options_.log != nullptr) options_.log(line);
  }

  int StageOf(const Peer& peer) const {
    for (size_t s = 0; s < members_.size(); ++s) {
      if (members_[s] != nullptr && members_[s]->peer.get() == &peer) return static_cast<int>(s);
    }
    return -1;
  }

  // With the lock held, as all below.
  absl::Status ReceivedFromStranger(Stranger& stranger, const FromStage& message) {
    if (!stranger.hello.has_value()) {
      if (message.message_case() != FromStage::kHello) {
        return absl::InvalidArgumentError("the first message must be a hello");
      }
      const control::Hello& hello = message.hello();
      if (hello.protocol() != kControlProtocol) {
        return absl::FailedPreconditionError(absl::StrFormat(
            "stage %d speaks version %d of the protocol, the head version %d: run the same program "
            "everywhere",
            hello.stage(), hello.protocol(), kControlProtocol));
      }
      if (hello.nonce().size() != SharedSecret::kNonceBytes) {
        return absl::InvalidArgumentError("a nonce of another length");
      }
      stranger.hello = hello;
      stranger.nonce = RandomNonce();
      FromHead answer;
      answer.mutable_challenge()->set_nonce(stranger.nonce);
      answer.mutable_challenge()->set_proof(
          options_.secret.Prove("head", {hello.nonce(), stranger.nonce, Claim(hello)}));
      stranger.peer->Send(std::move(answer));
      return absl::OkStatus();
    }
    if (message.message_case() != FromStage::kProof) {
      return absl::InvalidArgumentError("a proof must follow the hello");
    }
    const control::Hello& hello = *stranger.hello;
    if (!options_.secret.Verify("stage", {stranger.nonce, hello.nonce(), Claim(hello)},
                                message.proof())) {
      Log(absl::StrCat("refused ", stranger.peer->address(), ": it does not know the token"));
      return absl::UnauthenticatedError("the token is not the head's: give both the same file");
    }
    if (absl::Status status = Admissible(hello); !status.ok()) {
      const std::string who = absl::StrCat(hello.host(), ", pid ", hello.pid());
      Log(absl::StrCat("refused stage ", hello.stage(), " (", who, "): ", status.message()));
      const bool can_never_join = !absl::IsAlreadyExists(status);
      if (can_never_join && hello.stage() >= 0 && hello.stage() < count()) {
        const std::string why = absl::StrCat("(", who, ") was refused: ", status.message());
        causes_[hello.stage()] = why;
        // Whoever starts a pipeline is told at once. Later, what waits may wait for better.
        if (generation_ < 0) {
          Leave(absl::FailedPreconditionError(absl::StrCat(Name(hello.stage()), " ", why)));
        }
      }
      return status;
    }
    Welcome(stranger);
    return absl::OkStatus();
  }

  absl::Status Admissible(const control::Hello& hello) const {
    if (hello.version() != options_.version) {
      return absl::FailedPreconditionError(absl::StrCat("it is of version ", hello.version(),
                                                        ", the head of version ", options_.version,
                                                        ": run the same program everywhere"));
    }
    if (hello.stage() < 0 || hello.stage() >= count()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "there is no stage ", hello.stage(), ": the plan has stages 0 to ", count() - 1));
    }
    Fingerprints theirs;
    for (const control::Fingerprint& fingerprint : hello.fingerprints()) {
      theirs[fingerprint.name()] = fingerprint.sha256();
    }
    for (const auto& [name, sha256] : options_.fingerprints) {
      const std::string& other = theirs[name];
      if (other == sha256) continue;
      return absl::FailedPreconditionError(absl::StrFormat(
          "its %s differs from the head's (SHA-256 %s... there, %s... here): give all processes "
          "the same",
          name, other.empty() ? "none" : other.substr(0, 8), sha256.substr(0, 8)));
    }
    if (members_[hello.stage()] != nullptr) {
      return absl::AlreadyExistsError(absl::StrCat(
          "stage ", hello.stage(), " is already here: ", members_[hello.stage()]->where()));
    }
    return absl::OkStatus();
  }

  void Welcome(Stranger& stranger) {
    auto member = std::make_unique<Member>();
    member->peer = stranger.peer;
    member->hello = *std::move(stranger.hello);
    member->heard = Clock::now();
    member->same_clock = !boot_id_.empty() && member->hello.boot_id() == boot_id_;
    const int stage = member->hello.stage();
    strangers_.erase(member->peer.get());
    FromHead load;
    *load.mutable_load() = options_.loads[stage];
    member->peer->Send(std::move(load));
    Ping(*member);
    Log(absl::StrCat(Name(stage), " joined: ", member->where()));
    members_[stage] = std::move(member);
  }

  absl::Status ReceivedFromMember(int stage, const FromStage& message) {
    Member& member = *members_[stage];
    member.heard = Clock::now();
    switch (message.message_case()) {
      case FromStage::kLoaded:
        member.loaded = true;
        ConnectIfComplete();
        return absl::OkStatus();
      case FromStage::kConnected:
        if (message.connected() == generation_ && !loss_.has_value()) {
          member.connected = true;
          BeginIfConnected();
        }
        return absl::OkStatus();
      case FromStage::kReports:
        return ReceivedReports(stage, message.reports());
      case FromStage::kFailed:
        return ReceivedFailure(stage, message.failed());
      case FromStage::kPong:
        member.clock.Add(message.pong().ping_sent_ns(), message.pong().received_ns(),
                         message.pong().sent_ns(), MonotonicNanoseconds());
        if (!message.pong().description().empty()) {
          member.description = message.pong().description();
        }
        Describe(stage);
        return absl::OkStatus();
      default:
        return absl::InvalidArgumentError("an unexpected message");
    }
  }

  absl::Status ReceivedReports(int stage, const control::Reports& message) {
    if (message.generation() != generation_ || !ready_ || loss_.has_value()) {
      return absl::OkStatus();
    }
    Member& member = *members_[stage];
    int64_t offset_ns = 0;
    if (!member.same_clock) {
      if (const auto estimate = member.clock.estimate(); estimate.has_value()) {
        offset_ns = estimate->offset_ns;
      }
    }
    absl::StatusOr<std::vector<StageReport>> reports =
        member.reader.Take(message, stage, offset_ns);
    if (!reports.ok()) return reports.status();
    for (StageReport& report : *reports) {
      if (absl::Status status = order_.Take(report); !status.ok()) return status;
    }
    if (listener_ != nullptr && !reports->empty()) listener_->Reported(*std::move(reports));
    return absl::OkStatus();
  }

  absl::Status ReceivedFailure(int stage, const control::Failed& failed) {
    absl::StatusCode code = static_cast<absl::StatusCode>(failed.code());
    // Nobody asked for this end, whatever the stage was told of its link.
    if (code == absl::StatusCode::kOk || code == absl::StatusCode::kCancelled) {
      code = absl::StatusCode::kUnavailable;
    }
    const absl::Status status(code, absl::StrCat(Name(stage), ": ", failed.message()));
    if (failed.generation() < 0) {
      causes_[stage] = failed.message();
      Leave(status);
      return absl::OkStatus();
    }
    if (failed.generation() == generation_) {
      Lose(status, failed.link() ? kLinkBroke : kItSaidSo);
    }
    return absl::OkStatus();
  }

  void Drop(int stage, const absl::Status& cause, Certainty certainty) {
    const std::unique_ptr<Member> member = std::move(members_[stage]);
    member->peer->Cut();
    if (causes_[stage].empty() || certainty == kItSaidSo) {
      causes_[stage] = std::string(cause.message());
    }
    Log(absl::StrCat("lost: ", cause.message()));
    Lose(cause, certainty);
  }

  void Lose(const absl::Status& cause, Certainty certainty) {
    if (!connecting_ && !ready_) return;  // nothing to lose
    const auto now = Clock::now();
    if (!loss_.has_value()) {
      loss_ = Loss{.cause = cause, .certainty = certainty, .tell_at = now + kClearUp};
    } else if (certainty > loss_->certainty) {
      loss_->cause = cause;
      loss_->certainty = certainty;
    }
    if (certainty == kItSaidSo) loss_->tell_at = now;
    wake_.notify_all();
  }

  // The stages will not recover.
  void Leave(const absl::Status& cause) {
    if (!gone_.ok()) return;
    gone_ = cause;
    wake_.notify_all();
  }

  void ConnectIfComplete() {
    if (listener_ == nullptr || connecting_ || ready_ || !gone_.ok()) return;
    if (Clock::now() < connect_after_) return;
    for (const std::unique_ptr<Member>& member : members_) {
      if (member == nullptr || !member->loaded) return;
    }
    ++generation_;
    connecting_ = true;
    connect_by_ = Clock::now() + ToChrono(options_.silent_after) * 2;
    const std::string session = absl::BytesToHexString(RandomNonce());
    order_ = ReportOrder(count());
    for (int s = 0; s < count(); ++s) {
      members_[s]->connected = false;
      members_[s]->reader = ReportReader();
      FromHead message;
      control::Connect& connect = *message.mutable_connect();
      connect.set_generation(generation_);
      connect.set_session(session);
      for (const int neighbour : {s - 1, s + 1}) {
        if (neighbour < 0 || neighbour >= count()) continue;
        (*connect.mutable_peers())[neighbour] = members_[neighbour]->hello.data_address();
      }
      members_[s]->peer->Send(std::move(message));
    }
    wake_.notify_all();
  }

  void BeginIfConnected() {
    for (const std::unique_ptr<Member>& member : members_) {
      if (member == nullptr || !member->connected) return;
    }
    connecting_ = false;
    ready_ = true;
    for (std::string& cause : causes_) cause.clear();
    if (listener_ != nullptr) listener_->Ready(generation_);
  }

  void Ping(const Member& member) {
    FromHead ping;
    ping.mutable_ping()->set_sent_ns(MonotonicNanoseconds());
    member.peer->Send(std::move(ping));
  }

  void Describe(int stage) {
    const Member& member = *members_[stage];
    std::string clock = "the head's clock";
    if (!member.same_clock) {
      clock = absl::StrFormat("clock known within %.0f us",
                              1e-3 * static_cast<double>(member.clock.estimate()->uncertainty_ns));
    }
    last_seen_.resize(members_.size());
    last_seen_[stage] = absl::StrCat(Name(stage), ": process on ", member.hello.host(), " at ",
                                     member.hello.data_address(), ", ", clock,
                                     member.description.empty() ? "" : "; ", member.description);
  }

  // Who has not joined, and what is known of why.
  std::string Missing() const {
    std::vector<std::string> missing;
    for (size_t s = 0; s < members_.size(); ++s) {
      std::string line = Name(static_cast<int>(s));
      if (members_[s] == nullptr) {
        absl::StrAppend(&line, causes_[s].empty()
                                   ? " has not joined"
                                   : absl::StrCat(" has not come back: ", causes_[s]));
      } else if (!members_[s]->loaded) {
        absl::StrAppend(&line, " has not loaded its share of the model");
      } else {
        continue;
      }
      missing.push_back(std::move(line));
    }
    if (missing.empty()) return "the stages could not connect to one another";
    return absl::StrJoin(missing, "; ");
  }

  void Monitor() {
    Clock::time_point next_ping = Clock::now();
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopped_) {
      const Clock::time_point now = Clock::now();
      if (now >= next_ping) {
        next_ping = now + ToChrono(kPingInterval);
        LookAfterAll(now);
      }
      if (loss_.has_value() && now >= loss_->tell_at) TellLoss(now);
      if (!gone_.ok()) {
        if (!std::exchange(told_gone_, true) && listener_ != nullptr) listener_->Gone(gone_);
      } else if (!ready_ && !connecting_ && now >= give_up_ && AllAbsentOrWaiting()) {
        Leave(absl::DeadlineExceededError(absl::StrCat("after ", Seconds(options_.join_timeout),
                                                       " ", Missing(), "; the head listens at ",
                                                       address_)));
        continue;
      }
      Clock::time_point until = next_ping;
      if (loss_.has_value()) until = std::min(until, loss_->tell_at);
      wake_.wait_until(lock, until);
    }
  }

  // Loading takes as long as it takes, while the process is alive.
  bool AllAbsentOrWaiting() const {
    for (const std::unique_ptr<Member>& member : members_) {
      if (member == nullptr) return true;
    }
    return false;
  }

  void LookAfterAll(Clock::time_point now) {
    ConnectIfComplete();
    for (int s = 0; s < count(); ++s) {
      if (members_[s] == nullptr) continue;
      if (now - members_[s]->heard > ToChrono(options_.silent_after)) {
        Drop(s,
             absl::UnavailableError(absl::StrCat(
                 Name(s), " (", members_[s]->where(), ") has been silent for ",
                 Seconds(options_.silent_after), ": it is frozen, or its link is cut")),
             kStreamBroke);
        continue;
      }
      Ping(*members_[s]);
    }
    std::vector<Peer*> late;
    for (const auto& [peer, stranger] : strangers_) {
      if (now - stranger.since > kStrangerTime) late.push_back(peer);
    }
    for (Peer* const peer : late) {
      peer->End(absl::DeadlineExceededError("no proof in time"));
      strangers_.erase(peer);
    }
    if (connecting_ && now > connect_by_ && !loss_.has_value()) {
      std::vector<std::string> late_stages;
      for (int s = 0; s < count(); ++s) {
        if (members_[s] != nullptr && !members_[s]->connected) late_stages.push_back(Name(s));
      }
      Lose(absl::UnavailableError(absl::StrCat(absl::StrJoin(late_stages, ", "),
                                               ": not connected to its neighbours in time")),
           kLinkBroke);
    }
  }

  void TellLoss(Clock::time_point now) {
    const absl::Status cause = loss_->cause;
    loss_.reset();
    const bool was_ready = ready_;
    ready_ = false;
    connecting_ = false;
    if (was_ready) {
      // Of a failure while connecting nobody needs to know; the time to join goes on.
      give_up_ = now + ToChrono(options_.join_timeout);
      if (listener_ != nullptr) listener_->Lost(cause);
    } else {
      Log(absl::StrCat("could not connect: ", cause.message()));
      connect_after_ = now + ToChrono(kPingInterval);
      if (now >= give_up_) return Leave(cause);
    }
    ConnectIfComplete();
  }

  const RemoteStagesOptions options_;
  const std::string boot_id_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
  std::thread monitor_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  StagesListener* listener_ = nullptr;
  bool stopped_ = false;
  int streams_ = 0;  // that have not ended
  std::map<Peer*, Stranger> strangers_;
  std::vector<std::unique_ptr<Member>> members_;  // by stage; null: not there
  std::vector<std::string> causes_;               // of the last loss or refusal, by stage
  std::vector<std::string> last_seen_;
  // Of the generation that is being made or is ready.
  int64_t generation_ = -1;
  bool connecting_ = false;
  bool ready_ = false;
  std::optional<Loss> loss_;
  ReportOrder order_{0};
  Clock::time_point give_up_{};
  Clock::time_point connect_by_{};
  Clock::time_point connect_after_{};
  absl::Status gone_;
  bool told_gone_ = false;
};

void Peer::OnReadDone(bool ok) {
  if (!ok) return head_.StreamBroke(*this);
  head_.Received(*this, incoming_);
  StartRead(&incoming_);
}

void Peer::OnCancel() { head_.StreamBroke(*this); }

void Peer::OnDone() {
  head_.StreamEnded();
  const std::shared_ptr<Peer> last = std::move(self_);
}

}  // namespace

absl::StatusOr<std::unique_ptr<RemoteStages>> RemoteStages::Listen(
    const RemoteStagesOptions& options) {
  FABRICAST_CHECK(!options.loads.empty()) << "a pipeline without stages";
  auto head = std::make_unique<Head>(options);
  if (absl::Status status = head->ListenNow(); !status.ok()) return status;
  return head;
}

}  // namespace fabricast
