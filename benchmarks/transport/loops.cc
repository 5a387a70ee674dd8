#include "benchmarks/transport/loops.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <functional>
#include <future>
#include <mutex>
#include <semaphore>
#include <thread>

#include "runtime/check.h"

namespace fabricast {
namespace {

using Clock = std::chrono::steady_clock;
using Bytes = std::vector<std::byte>;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Bytes without a short period. A message begins at another place than its neighbours.
const Bytes& Source(size_t message_bytes) {
  static std::mutex mutex;
  static Bytes source;
  const std::lock_guard<std::mutex> lock(mutex);
  if (source.empty()) {
    source.resize((size_t{64} << 20) + 4096);
    uint64_t state = 1;
    for (std::byte& byte : source) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      byte = static_cast<std::byte>(state >> 56);
    }
  }
  FABRICAST_CHECK(message_bytes + 4096 <= source.size()) << message_bytes;
  return source;
}

absl::Span<const std::byte> MessageOf(const Load& load, int number) {
  return absl::MakeConstSpan(Source(load.message_bytes))
      .subspan(static_cast<size_t>(number % 1024), load.message_bytes);
}

void CheckOk(const absl::Status& status) { FABRICAST_CHECK(status.ok()) << status; }

// One call, until it has ended.
void Wait(const std::function<absl::Status(StageTransport::Done done)>& call) {
  std::promise<absl::Status> ended;
  CheckOk(call([&ended](absl::Status status) { ended.set_value(status); }));
  CheckOk(ended.get_future().get());
}

void SendAll(const UniqueFd& socket, absl::Span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    FABRICAST_CHECK(sent > 0) << ErrorText(errno);
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
}

void ReceiveAll(const UniqueFd& socket, absl::Span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t got = recv(socket.get(), bytes.data(), bytes.size(), MSG_WAITALL);
    if (got < 0 && errno == EINTR) continue;
    FABRICAST_CHECK(got > 0) << (got < 0 ? ErrorText(errno) : "closed");
    bytes.remove_prefix(static_cast<size_t>(got));
  }
}

// A message without bytes is one on a plain socket.
size_t PlainBytes(const Load& load) { return std::max<size_t>(load.message_bytes, 1); }

}  // namespace

double StreamClient(StageTransport& to_1, const Load& load) {
  Source(load.message_bytes);
  // The server is ready.
  Wait([&](StageTransport::Done done) { return to_1.Receive(1, {}, std::move(done)); });
  std::promise<void> told;
  CheckOk(to_1.Receive(1, {}, [&told](absl::Status status) {
    CheckOk(status);
    told.set_value();
  }));
  const Clock::time_point start = Clock::now();
  std::counting_semaphore<kWindow> room(kWindow);
  for (int i = 0; i < load.messages; ++i) {
    room.acquire();
    CheckOk(to_1.Send(1, MessageOf(load, i), [&room](absl::Status status) {
      CheckOk(status);
      room.release();
    }));
  }
  told.get_future().wait();
  const double seconds = SecondsSince(start);
  for (int i = 0; i < kWindow; ++i) room.acquire();
  return seconds;
}

void StreamServer(StageTransport& to_0, const Load& load, bool verify) {
  std::vector<Bytes> buffers(std::min(kWindow, load.messages), Bytes(load.message_bytes));
  std::promise<void> over;
  // The window's first are posted before the client begins, the others by the I/O thread: in order.
  std::function<void(int)> post = [&](int number) {
    // Message `number - buffers.size()` was here before, and has ended.
    Bytes& buffer = buffers[number % buffers.size()];
    CheckOk(to_0.Receive(0, absl::MakeSpan(buffer), [&, number](absl::Status status) {
      CheckOk(status);
      if (verify) {
        const absl::Span<const std::byte> sent = MessageOf(load, number);
        FABRICAST_CHECK(std::equal(sent.begin(), sent.end(), buffer.begin()))
            << "message " << number << " of " << load.message_bytes << " bytes arrived otherwise";
      }
      const int next = number + static_cast<int>(buffers.size());
      if (next < load.messages) post(next);
      if (number + 1 == load.messages) over.set_value();
    }));
  };
  for (size_t i = 0; i < buffers.size(); ++i) post(static_cast<int>(i));
  Wait([&](StageTransport::Done done) { return to_0.Send(0, {}, std::move(done)); });
  over.get_future().wait();
  Wait([&](StageTransport::Done done) { return to_0.Send(0, {}, std::move(done)); });
}

std::vector<double> PingPongClient(StageTransport& to_1, const Load& load) {
  const Bytes sent(load.message_bytes, std::byte{1});
  Bytes received(load.message_bytes);
  std::vector<double> seconds;
  seconds.reserve(load.messages);
  std::promise<void> over;
  Clock::time_point start;
  std::function<void()> round = [&] {
    CheckOk(to_1.Receive(1, absl::MakeSpan(received), [&](absl::Status status) {
      CheckOk(status);
      seconds.push_back(SecondsSince(start));
      if (seconds.size() == static_cast<size_t>(load.messages)) return over.set_value();
      round();
    }));
    start = Clock::now();
    CheckOk(to_1.Send(1, sent, &CheckOk));
  };
  round();
  over.get_future().wait();
  return seconds;
}

void PingPongServer(StageTransport& to_0, const Load& load) {
  const Bytes sent(load.message_bytes, std::byte{1});
  Bytes received(load.message_bytes);
  int left = load.messages;
  std::promise<void> over;
  std::function<void()> round = [&] {
    CheckOk(to_0.Receive(0, absl::MakeSpan(received), [&](absl::Status status) {
      CheckOk(status);
      const bool last = --left == 0;
      if (!last) round();
      CheckOk(to_0.Send(0, sent, [&over, last](absl::Status status) {
        CheckOk(status);
        if (last) over.set_value();
      }));
    }));
  };
  round();
  over.get_future().wait();
}

double PlainStreamClient(const UniqueFd& socket, const Load& load) {
  Source(load.message_bytes);
  std::byte told;
  ReceiveAll(socket, absl::MakeSpan(&told, 1));
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < load.messages; ++i) SendAll(socket, MessageOf(load, i));
  ReceiveAll(socket, absl::MakeSpan(&told, 1));
  return SecondsSince(start);
}

void PlainStreamServer(const UniqueFd& socket, const Load& load) {
  std::vector<Bytes> buffers(std::min(kWindow, load.messages), Bytes(load.message_bytes));
  const std::byte tells{1};
  SendAll(socket, absl::MakeConstSpan(&tells, 1));
  for (int i = 0; i < load.messages; ++i) {
    ReceiveAll(socket, absl::MakeSpan(buffers[i % buffers.size()]));
  }
  SendAll(socket, absl::MakeConstSpan(&tells, 1));
}

std::vector<double> PlainPingPongClient(const UniqueFd& socket, const Load& load) {
  const Bytes sent(PlainBytes(load), std::byte{1});
  Bytes received(PlainBytes(load));
  std::vector<double> seconds;
  for (int i = 0; i < load.messages; ++i) {
    const Clock::time_point start = Clock::now();
    SendAll(socket, sent);
    ReceiveAll(socket, absl::MakeSpan(received));
    seconds.push_back(SecondsSince(start));
  }
  return seconds;
}

void PlainPingPongServer(const UniqueFd& socket, const Load& load) {
  Bytes bytes(PlainBytes(load));
  for (int i = 0; i < load.messages; ++i) {
    ReceiveAll(socket, absl::MakeSpan(bytes));
    SendAll(socket, bytes);
  }
}

UniqueFd PlainDial(const SocketAddress& server) {
  for (int attempt = 0;; ++attempt) {
    UniqueFd fd(socket(server.get()->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    FABRICAST_CHECK(fd.valid()) << ErrorText(errno);
    if (connect(fd.get(), server.get(), server.size()) == 0) {
      SetNoDelay(fd.get());
      return fd;
    }
    FABRICAST_CHECK(errno == ECONNREFUSED && attempt < 6000)
        << server.ToString() << ": " << ErrorText(errno);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

UniqueFd PlainAccept(const SocketAddress& server) {
  const UniqueFd listener(socket(server.get()->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  FABRICAST_CHECK(bind(listener.get(), server.get(), server.size()) == 0 &&
                  listen(listener.get(), 1) == 0)
      << server.ToString() << ": " << ErrorText(errno);
  UniqueFd fd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  FABRICAST_CHECK(fd.valid()) << ErrorText(errno);
  SetNoDelay(fd.get());
  return fd;
}

}  // namespace fabricast
