#include "runtime/transport/nccl_transport.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "kernels/gpu/cuda_status.h"
#include "runtime/check.h"
#include "runtime/transport/callback_scope.h"
#include "runtime/transport/little_endian.h"
#include "runtime/transport/nccl_direction.h"
#include "runtime/transport/shared_counters.h"

namespace fabricast {
namespace {

// Between looks at what NCCL's threads have found. The side channel finds deaths itself; this finds
// what only NCCL knows of, such as a broken connection of its own.
constexpr std::chrono::milliseconds kCheckPeriod{100};
// Between attempts to let go what waits in a stream of a link that has ended.
constexpr std::chrono::milliseconds kReleasePeriod{1};

// What one end tells the other first: 8 bytes that name this protocol, whether it sends and whether
// it receives, how it can meet, NCCL's identifier for what it sends, and the name of counters that
// it has made for both.
struct Hello {
  static constexpr char kMagic[] = "fcnccl02";
  static constexpr size_t kBytes = 8 + 3 + 128 + SharedCounters::kMostNameBytes;

  bool sends = false;
  bool receives = false;
  NcclMeeting meeting = NcclMeeting::kNone;
  NcclId id = {};
  std::string counters;

  std::array<std::byte, kBytes> Encode() const {
    FABRICAST_CHECK(counters.size() < SharedCounters::kMostNameBytes) << counters;
    std::array<std::byte, kBytes> bytes = {};
    std::memcpy(bytes.data(), kMagic, 8);
    bytes[8] = std::byte{sends};
    bytes[9] = std::byte{receives};
    bytes[10] = static_cast<std::byte>(meeting);
    std::memcpy(bytes.data() + 11, id.data(), id.size());
    std::memcpy(bytes.data() + 139, counters.data(), counters.size());
    return bytes;
  }
  static absl::StatusOr<Hello> Decode(const std::array<std::byte, kBytes>& bytes) {
    if (std::memcmp(bytes.data(), kMagic, 8) != 0) {
      return absl::UnavailableError("speaks another version of the protocol; run the same build");
    }
    Hello hello;
    hello.sends = bytes[8] != std::byte{0};
    hello.receives = bytes[9] != std::byte{0};
    hello.meeting = static_cast<NcclMeeting>(bytes[10]);
    std::memcpy(hello.id.data(), bytes.data() + 11, hello.id.size());
    const char* const name = reinterpret_cast<const char*>(bytes.data()) + 139;
    hello.counters.assign(name, strnlen(name, SharedCounters::kMostNameBytes));
    return hello;
  }
};

// What an end tells the other later: of a message of `came` bytes that it sends; that one met a
// buffer of `expected`, which ends the link; or that its counter has come to `came`, of the
// direction in which it sends, or of the other.
struct Record {
  static constexpr size_t kBytes = 17;
  using Bytes = std::array<std::byte, kBytes>;
  enum class Kind : uint8_t { kMessage = 1, kWrongLength = 2, kSenderMet = 3, kReceiverMet = 4 };

  Kind kind = Kind::kMessage;
  uint64_t came = 0;
  uint64_t expected = 0;

  Bytes Encode() const {
    Bytes bytes;
    bytes[0] = static_cast<std::byte>(kind);
    StoreLittleEndian(came, bytes.data() + 1);
    StoreLittleEndian(expected, bytes.data() + 9);
    return bytes;
  }
  static Record Decode(const Bytes& bytes) {
    return {static_cast<Kind>(bytes[0]), LoadLittleEndian<uint64_t>(bytes.data() + 1),
            LoadLittleEndian<uint64_t>(bytes.data() + 9)};
  }
  std::string Lengths() const {
    return absl::StrCat("a message of ", came, " bytes came where ", expected, " were expected");
  }
};

// Calls of the side channel that have not ended, by peer.
class Pending {
 public:
  StageTransport::Done done(int peer) {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->peers.insert(peer);
    return [state = state_, peer](absl::Status status) {
      const std::lock_guard<std::mutex> lock(state->mutex);
      state->peers.erase(state->peers.find(peer));
      if (state->status.ok()) state->status = std::move(status);
      state->changed.notify_all();
    };
  }

  // The first that fails, if any.
  absl::Status Wait(int stage, absl::Time deadline) {
    std::unique_lock<std::mutex> lock(state_->mutex);
    const bool came = state_->changed.wait_until(lock, absl::ToChronoTime(deadline), [this] {
      return state_->peers.empty() || !state_->status.ok();
    });
    if (came) return state_->status;
    return absl::DeadlineExceededError(absl::StrCat(
        "stage ", stage, " waits for NCCL's identifiers of stage ",
        absl::StrJoin(std::set<int>(state_->peers.begin(), state_->peers.end()), ", ")));
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::multiset<int> peers;
    absl::Status status;
  };
  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

class NcclTransport final : public DeviceTransport {
 public:
  NcclTransport(std::shared_ptr<Nccl> nccl, std::unique_ptr<StageTransport> side,
                const NcclLinks& setup)
      : nccl_(std::move(nccl)), setup_(setup), side_(std::move(side)) {}

  ~NcclTransport() override {
    FABRICAST_CHECK(!CallbackScope::Inside(this)) << "destroyed by one of its own callbacks";
    Close();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
      changed_.notify_all();
    }
    if (supervisor_.joinable()) supervisor_.join();
  }

  absl::Status Join(absl::Time deadline) {
    FABRICAST_RETURN_IF_CUDA_FAILS(cudaGetDevice(&device_));
    for (const int peer : setup_.receive_from) LinkWith(peer).hello.receives = true;
    for (const int peer : setup_.send_to) LinkWith(peer).hello.sends = true;
    absl::Status status = ExchangeHellos(deadline);
    if (status.ok()) status = ShareCounters(deadline);
    if (status.ok()) status = JoinDirections(deadline);
    if (!status.ok()) return status;
    for (const auto& [peer, link] : links_) ListenTo(*link);
    supervisor_ = std::thread([this] { Supervise(); });
    return absl::OkStatus();
  }

  absl::Status Send(int to, absl::Span<const std::byte> bytes, Done done) override {
    return Submit(to, /*sends=*/true, nullptr, Writable(bytes), nullptr, false, std::move(done));
  }
  absl::Status Receive(int from, absl::Span<std::byte> buffer, Done done) override {
    return Submit(from, /*sends=*/false, nullptr, buffer, nullptr, false, std::move(done));
  }
  absl::Status SendAfter(GpuEventHandle ready, int to, absl::Span<const std::byte> bytes,
                         Done done) override {
    return Submit(to, /*sends=*/true, ready, Writable(bytes), nullptr, true, std::move(done));
  }
  absl::Status ReceiveAfter(GpuEventHandle free, int from, absl::Span<std::byte> buffer,
                            GpuEventHandle arrived, Done done) override {
    return Submit(from, /*sends=*/false, free, buffer, arrived, true, std::move(done));
  }

  void Close() override {
    for (const auto& [peer, link] : links_) {
      End(*link,
          absl::CancelledError(absl::StrCat("the link of stages ", setup_.stage, " and ", peer,
                                            " was closed by stage ", setup_.stage)),
          /*broken=*/false);
    }
    // Tells the peers.
    side_->Close();
    if (CallbackScope::Inside(this)) return;
    for (const auto& [peer, link] : links_) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&link = *link] { return link.end.ended(); });
      }
      for (NcclDirection* const direction : link->directions()) direction->WaitUntilDrained();
    }
  }

 private:
  struct Link {
    int peer = 0;
    Hello hello;       // ours
    Hello peer_hello;  // theirs
    std::unique_ptr<SharedCounters> counters;
    bool relayed = false;  // the peer does not see them
    LinkEnd end;
    std::unique_ptr<NcclDirection> sending;
    std::unique_ptr<NcclDirection> receiving;
    Record::Bytes heard;
    bool ending = false;  // guarded by mutex_

    std::vector<NcclDirection*> directions() const {
      std::vector<NcclDirection*> both;
      if (sending != nullptr) both.push_back(sending.get());
      if (receiving != nullptr) both.push_back(receiving.get());
      return both;
    }
  };

  // A direction does not write to what it sends.
  static absl::Span<std::byte> Writable(absl::Span<const std::byte> bytes) {
    return {const_cast<std::byte*>(bytes.data()), bytes.size()};
  }

  Link& LinkWith(int peer) {
    std::unique_ptr<Link>& link = links_[peer];
    if (link == nullptr) {
      link = std::make_unique<Link>();
      link->peer = peer;
    }
    return *link;
  }

  absl::Status About(const Link& link, const absl::Status& status) const {
    if (status.ok()) return status;
    return absl::Status(status.code(), absl::StrCat("stage ", setup_.stage, " and stage ",
                                                    link.peer, ": ", status.message()));
  }

  absl::Status ExchangeHellos(absl::Time deadline) {
    Pending pending;
    for (const auto& [peer, link] : links_) {
      if (link->hello.sends) {
        absl::StatusOr<NcclId> id = nccl_->NewId();
        if (!id.ok()) return id.status();
        link->hello.id = *id;
      }
      // Without counters it goes as well.
      if (setup_.meeting != NcclMeeting::kNone) {
        absl::StatusOr<std::unique_ptr<SharedCounters>> counters = SharedCounters::Create();
        if (counters.ok()) {
          link->counters = *std::move(counters);
          link->hello.meeting = setup_.meeting;
          if (setup_.meeting == NcclMeeting::kShared && setup_.stage < peer) {
            link->hello.counters = link->counters->name();
          }
        }
      }
      Exchange& exchange = exchanges_[peer];
      exchange.mine = link->hello.Encode();
      absl::Status status = side_->Send(peer, exchange.mine, pending.done(peer));
      if (status.ok()) {
        status = side_->Receive(peer, absl::MakeSpan(exchange.theirs), pending.done(peer));
      }
      if (!status.ok()) return About(*link, status);
    }
    if (absl::Status status = pending.Wait(setup_.stage, deadline); !status.ok()) return status;
    for (const auto& [peer, link] : links_) {
      const absl::StatusOr<Hello> hello = Hello::Decode(exchanges_[peer].theirs);
      if (!hello.ok()) return About(*link, hello.status());
      if (hello->sends != link->hello.receives || hello->receives != link->hello.sends) {
        return About(*link, absl::InvalidArgumentError("they do not agree on who sends to whom"));
      }
      link->peer_hello = *hello;
    }
    return absl::OkStatus();
  }

  // Each end has made counters. Those of the lower stage become both's, if the higher one says that
  // it could open them.
  absl::Status ShareCounters(absl::Time deadline) {
    Pending pending;
    for (const auto& [peer, link] : links_) {
      Exchange& exchange = exchanges_[peer];
      const bool lower = setup_.stage < peer;
      if (!lower && link->hello.meeting == NcclMeeting::kShared &&
          !link->peer_hello.counters.empty()) {
        absl::StatusOr<std::unique_ptr<SharedCounters>> counters =
            SharedCounters::Open(link->peer_hello.counters);
        if (counters.ok()) {
          link->counters = *std::move(counters);
          exchange.opened = std::byte{1};
        }
      }
      const absl::Status status =
          lower ? side_->Receive(peer, absl::MakeSpan(&exchange.opened, 1), pending.done(peer))
                : side_->Send(peer, absl::MakeConstSpan(&exchange.opened, 1), pending.done(peer));
      if (!status.ok()) return About(*link, status);
    }
    if (absl::Status status = pending.Wait(setup_.stage, deadline); !status.ok()) return status;
    for (const auto& [peer, link] : links_) {
      if (std::min(link->hello.meeting, link->peer_hello.meeting) == NcclMeeting::kNone) {
        link->counters = nullptr;
        continue;
      }
      link->relayed = exchanges_[peer].opened == std::byte{0};
      link->counters->Unlink();
    }
    return absl::OkStatus();
  }

  // By sender, then receiver, everywhere, so that no two wait for one another.
  absl::Status JoinDirections(absl::Time deadline) {
    std::vector<std::pair<int, int>> directions;
    for (const auto& [peer, link] : links_) {
      if (link->hello.sends) directions.emplace_back(setup_.stage, peer);
      if (link->hello.receives) directions.emplace_back(peer, setup_.stage);
    }
    std::sort(directions.begin(), directions.end());
    for (const auto& [from, to] : directions) {
      const bool sends = from == setup_.stage;
      Link& link = *links_.at(sends ? to : from);
      absl::StatusOr<std::unique_ptr<NcclCommunicator>> communicator = nccl_->JoinLink(
          sends ? link.hello.id : link.peer_hello.id, sends ? 0 : 1, setup_.channels, deadline);
      if (!communicator.ok()) return About(link, communicator.status());
      NcclDirection::Setup setup;
      setup.device = device_;
      setup.sends = sends;
      setup.communicator = *std::move(communicator);
      setup.counters = link.counters.get();
      // Two for what goes up, two for what goes down; the sender's first.
      const int first = from < to ? 0 : 2;
      setup.own_counter = sends ? first : first + 1;
      setup.peer_counter = sends ? first + 1 : first;
      setup.owner = this;
      setup.end = &link.end;
      setup.fail = [this, &link](const absl::Status& status) {
        End(link, About(link, status), /*broken=*/true);
      };
      setup.announce = [this, &link](uint64_t bytes) {
        Tell(link, {Record::Kind::kMessage, bytes, bytes});
      };
      if (link.relayed) {
        const Record::Kind kind = sends ? Record::Kind::kSenderMet : Record::Kind::kReceiverMet;
        setup.relay = [this, &link, kind](uint32_t met) { Tell(link, {kind, met, 0}); };
      }
      setup.mismatch = [this, &link](uint64_t came, uint64_t expected) {
        const Record record = {Record::Kind::kWrongLength, came, expected};
        Tell(link, record);
        End(link,
            absl::InvalidArgumentError(absl::StrCat("stage ", link.peer, ": ", record.Lengths())),
            /*broken=*/true);
      };
      absl::StatusOr<std::unique_ptr<NcclDirection>> direction =
          NcclDirection::Create(std::move(setup));
      if (!direction.ok()) return About(link, direction.status());
      (sends ? link.sending : link.receiving) = *std::move(direction);
    }
    return absl::OkStatus();
  }

  absl::Status Submit(int peer, bool sends, GpuEventHandle before, absl::Span<std::byte> bytes,
                      GpuEventHandle arrived, bool at_once, Done done) {
    const auto link = links_.find(peer);
    NcclDirection* const direction =
        link == links_.end() ? nullptr
                             : (sends ? link->second->sending : link->second->receiving).get();
    if (direction == nullptr) {
      return absl::NotFoundError(absl::StrCat("stage ", setup_.stage,
                                              sends ? " has no link to" : " has no link from",
                                              " stage ", peer));
    }
    return direction->Submit(before, bytes, arrived, at_once, std::move(done));
  }

  void Tell(const Link& link, const Record& record) {
    const auto bytes = std::make_shared<Record::Bytes>(record.Encode());
    // Why it fails is also what ends the link.
    (void)side_->Send(link.peer, *bytes, [bytes](absl::Status) {});
  }

  // Takes records as they come, on the side channel's threads.
  void ListenTo(Link& link) {
    const absl::Status status =
        side_->Receive(link.peer, absl::MakeSpan(link.heard), [this, &link](absl::Status heard) {
          if (!heard.ok()) return End(link, heard, /*broken=*/true);
          Take(link, Record::Decode(link.heard));
          ListenTo(link);
        });
    if (!status.ok()) End(link, status, /*broken=*/true);
  }

  void Take(Link& link, const Record& record) {
    if (record.kind == Record::Kind::kMessage && link.receiving != nullptr) {
      link.receiving->Announced(record.came);
    } else if (record.kind == Record::Kind::kSenderMet && link.receiving != nullptr) {
      link.receiving->Met(static_cast<uint32_t>(record.came));
    } else if (record.kind == Record::Kind::kReceiverMet && link.sending != nullptr) {
      link.sending->Met(static_cast<uint32_t>(record.came));
    } else {
      End(link,
          absl::UnavailableError(absl::StrCat("stage ", link.peer, " ended the link: ",
                                              record.kind == Record::Kind::kWrongLength
                                                  ? record.Lengths()
                                                  : "what it sent was broken")),
          /*broken=*/true);
    }
  }

  // Only the first counts.
  void End(Link& link, const absl::Status& status, bool broken) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (std::exchange(link.ending, true)) return;
    }
    if (broken && setup_.on_broken != nullptr) {
      const CallbackScope scope(this);
      setup_.on_broken(link.peer, status);
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      link.end.Set(status);
      ++endings_;
      changed_.notify_all();
    }
    for (NcclDirection* const direction : link.directions()) direction->Wake();
  }

  void Supervise() {
    cudaSetDevice(device_);
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopped_) {
      const int endings = endings_;
      lock.unlock();
      bool releasing = false;
      for (const auto& [peer, link] : links_) {
        for (NcclDirection* const direction : link->directions()) {
          if (link->end.ended()) {
            direction->Abort();
            releasing |= !direction->drained();
          } else if (absl::Status status = direction->Check(); !status.ok()) {
            End(*link, About(*link, status), /*broken=*/true);
          }
        }
      }
      lock.lock();
      changed_.wait_for(lock, releasing ? kReleasePeriod : kCheckPeriod,
                        [&] { return stopped_ || endings_ != endings; });
    }
  }

  // Lives until the side channel has been closed.
  struct Exchange {
    std::array<std::byte, Hello::kBytes> mine;
    std::array<std::byte, Hello::kBytes> theirs;
    std::byte opened{0};
  };

  const std::shared_ptr<Nccl> nccl_;
  const NcclLinks setup_;
  // The threads of directions use it until they end.
  const std::unique_ptr<StageTransport> side_;
  int device_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  int endings_ = 0;  // of links
  bool stopped_ = false;
  std::thread supervisor_;
  std::map<int, Exchange> exchanges_;
  std::map<int, std::unique_ptr<Link>> links_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceTransport>> MakeNcclTransport(
    std::shared_ptr<Nccl> nccl, std::unique_ptr<StageTransport> side, const NcclLinks& links,
    absl::Time deadline) {
  auto transport = std::make_unique<NcclTransport>(std::move(nccl), std::move(side), links);
  if (absl::Status status = transport->Join(deadline); !status.ok()) return status;
  return transport;
}

}  // namespace fabricast
