#include "benchmarks/fabric_rehearsal/message_times.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "benchmarks/engine/measure.h"
#include "runtime/transport/tcp.h"

namespace fabricast {
namespace {

constexpr int kPorts[] = {6000, 6001};  // of the two stages
constexpr int kWarmUp = 3;
// Between messages, so that each finds an idle cable: what a shaper's bucket holds fills up.
constexpr absl::Duration kPause = absl::Milliseconds(2);
constexpr absl::Duration kPatience = absl::Seconds(60);

// What both ends share: the times, and what went wrong.
struct Board {
  static constexpr int kMaxMessages = 20'000;

  double sent_s[kMaxMessages] = {};
  double arrived_s[kMaxMessages] = {};
  char errors[2][512] = {};
};

class SharedBoard {
 public:
  SharedBoard()
      : board_(static_cast<Board*>(mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE,
                                        MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~SharedBoard() {
    if (ok()) munmap(board_, sizeof(Board));
  }
  SharedBoard(const SharedBoard&) = delete;
  SharedBoard& operator=(const SharedBoard&) = delete;
  bool ok() const { return board_ != MAP_FAILED; }
  Board& operator*() const { return *board_; }

 private:
  Board* const board_;
};

// Lets a thread wait for one `done`.
class Completion {
 public:
  StageTransport::Done Done(double* at_s) {
    return [this, at_s](absl::Status status) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (at_s != nullptr) *at_s = WallSeconds();
      status_ = std::move(status);
      done_ = true;
      wake_.notify_one();
    };
  }
  absl::Status Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [this] { return done_; });
    done_ = false;
    return status_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  bool done_ = false;
  absl::Status status_;
};

struct Conversation {
  std::string ips[2];
  std::string secret;
  std::vector<int64_t> messages;  // sizes, in order
};

std::byte Pattern(int64_t message, int64_t position) {
  return static_cast<std::byte>((message * 31 + position * 7) & 0xFF);
}

absl::StatusOr<std::unique_ptr<StageTransport>> Meet(const Conversation& conversation, int stage,
                                                     std::unique_ptr<TcpEndpoint>& endpoint) {
  absl::StatusOr<std::unique_ptr<TcpEndpoint>> listening = TcpEndpoint::Listen(
      conversation.ips[stage], kPorts[stage], SharedSecret(conversation.secret), TcpOptions());
  if (!listening.ok()) return listening.status();
  endpoint = *std::move(listening);
  const int peer = 1 - stage;
  TcpGroup group;
  group.session = "message_times";
  group.stage = stage;
  group.peers = {{peer, absl::StrCat(conversation.ips[peer], ":", kPorts[peer])}};
  group.on_broken = [](int, const absl::Status&) {};
  return endpoint->Connect(group, absl::Now() + kPatience);
}

// Stage 0: sends a message when the one before it is answered.
absl::Status SendMessages(const Conversation& conversation, Board& board) {
  std::unique_ptr<TcpEndpoint> endpoint;
  absl::StatusOr<std::unique_ptr<StageTransport>> link = Meet(conversation, 0, endpoint);
  if (!link.ok()) return link.status();
  Completion sent;
  Completion answered;
  std::vector<std::byte> bytes;
  std::byte answer{};
  for (size_t i = 0; i < conversation.messages.size(); ++i) {
    bytes.resize(conversation.messages[i]);
    for (size_t at = 0; at < bytes.size(); ++at) bytes[at] = Pattern(i, at);
    absl::Status status = (*link)->Receive(1, absl::MakeSpan(&answer, 1), answered.Done(nullptr));
    if (!status.ok()) return status;
    absl::SleepFor(kPause);
    board.sent_s[i] = WallSeconds();
    status = (*link)->Send(1, bytes, sent.Done(nullptr));
    if (status.ok()) status = sent.Wait();
    if (status.ok()) status = answered.Wait();
    if (!status.ok()) return status;
  }
  (*link)->Close();
  return absl::OkStatus();
}

// Stage 1: its buffer for the next message is posted before it answers the one before.
absl::Status AnswerMessages(const Conversation& conversation, Board& board) {
  std::unique_ptr<TcpEndpoint> endpoint;
  absl::StatusOr<std::unique_ptr<StageTransport>> link = Meet(conversation, 1, endpoint);
  if (!link.ok()) return link.status();
  Completion arrived;
  Completion answered;
  const std::byte answer{1};
  std::vector<std::byte> buffers[2];
  const std::vector<int64_t>& messages = conversation.messages;
  const auto post = [&](size_t i) {
    buffers[i % 2].assign(messages[i], std::byte{});
    return (*link)->Receive(0, absl::MakeSpan(buffers[i % 2]), arrived.Done(&board.arrived_s[i]));
  };
  absl::Status status = post(0);
  for (size_t i = 0; status.ok() && i < messages.size(); ++i) {
    status = arrived.Wait();
    if (!status.ok()) return status;
    const std::vector<std::byte>& bytes = buffers[i % 2];
    for (size_t at = 0; at < bytes.size(); ++at) {
      if (bytes[at] != Pattern(i, at)) {
        return absl::DataLossError(absl::StrCat("byte ", at, " of message ", i, " is wrong"));
      }
    }
    if (i + 1 < messages.size()) status = post(i + 1);
    if (status.ok()) status = (*link)->Send(0, absl::MakeSpan(&answer, 1), answered.Done(nullptr));
    if (status.ok()) status = answered.Wait();
  }
  // The other end closes the link once it has the last answer.
  std::byte end{};
  if (status.ok() && (*link)->Receive(0, absl::MakeSpan(&end, 1), arrived.Done(nullptr)).ok()) {
    (void)arrived.Wait();
  }
  return status;
}

int Report(const absl::Status& status, char (&error)[512]) {
  if (status.ok()) return 0;
  const std::string text = status.ToString();
  error[text.copy(error, sizeof(error) - 1)] = 0;
  return 1;
}

}  // namespace

absl::StatusOr<std::vector<MessageTimes>> TimeMessages(VirtualNetwork& network,
                                                       const std::string& from,
                                                       const std::string& to,
                                                       const std::vector<int64_t>& sizes,
                                                       int repeats) {
  Conversation conversation{.ips = {network.ip(from), network.ip(to)},
                            .secret = SharedSecret::Random().bytes(),
                            .messages = {}};
  for (const int64_t size : sizes) {
    conversation.messages.insert(conversation.messages.end(), kWarmUp + repeats, size);
  }
  const SharedBoard shared;
  if (!shared.ok() || repeats < 1 || conversation.messages.size() > Board::kMaxMessages) {
    return absl::InvalidArgumentError(absl::StrCat("message times: ", sizes.size(), " sizes of ",
                                                   repeats, " messages: give 1 to ",
                                                   Board::kMaxMessages, " in all"));
  }
  Board& board = *shared;
  absl::StatusOr<std::unique_ptr<HostProcess>> receiver = network.Fork(
      to, [&] { return Report(AnswerMessages(conversation, board), board.errors[1]); });
  if (!receiver.ok()) return receiver.status();
  absl::StatusOr<std::unique_ptr<HostProcess>> sender = network.Fork(
      from, [&] { return Report(SendMessages(conversation, board), board.errors[0]); });
  if (!sender.ok()) return sender.status();
  const absl::StatusOr<int> sent = (*sender)->Wait(10 * kPatience);
  if (!sent.ok()) return sent.status();
  if (*sent != 0) {
    return absl::InternalError(
        absl::StrCat("message times: the sender: ", board.errors[0], " (status ", *sent, ")"));
  }
  const absl::StatusOr<int> answered = (*receiver)->Wait(kPatience);
  if (!answered.ok()) return answered.status();
  if (*answered != 0) {
    return absl::InternalError(absl::StrCat("message times: the receiver: ", board.errors[1],
                                            " (status ", *answered, ")"));
  }
  std::vector<MessageTimes> times;
  for (size_t i = 0; i < sizes.size(); ++i) {
    std::vector<double> seconds;
    for (int repeat = 0; repeat < repeats; ++repeat) {
      const size_t message = i * (kWarmUp + repeats) + kWarmUp + repeat;
      seconds.push_back(board.arrived_s[message] - board.sent_s[message]);
    }
    times.push_back({.bytes = sizes[i],
                     .undisturbed_s = Undisturbed(seconds),
                     .median_s = Median(seconds),
                     .p99_s = Percentile(seconds, 0.99)});
  }
  return times;
}

}  // namespace fabricast
