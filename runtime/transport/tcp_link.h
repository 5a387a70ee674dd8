// Two stages joined by TCP: a control stream and data streams.
//
// The control stream's only message is why an end goes. Nobody ever has to wait to read it, so it
// is also where death shows: at once if the peer's process ends, even though data streams are full,
// and after a while if the network is cut, which the kernel finds out (WatchPeer).
#ifndef FABRICAST_RUNTIME_TRANSPORT_TCP_LINK_H_
#define FABRICAST_RUNTIME_TRANSPORT_TCP_LINK_H_

#include <array>
#include <chrono>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/transport/stage_transport.h"
#include "runtime/transport/tcp_receiver.h"
#include "runtime/transport/tcp_sender.h"
#include "runtime/transport/tcp_socket.h"

namespace fabricast {

class TcpLink {
 public:
  using Clock = std::chrono::steady_clock;

  struct Setup {
    int stage = 0;
    int peer = 0;
    std::string peer_address;
    std::vector<UniqueFd> sockets;  // connected, non-blocking: the control stream, then data
    absl::Duration dead_after;
    std::function<void(int peer, const absl::Status&)> on_broken;
  };

  // As TcpSender's.
  TcpLink(Setup setup, const void* owner, std::function<void()> wake);

  int peer() const { return peer_; }
  const std::vector<UniqueFd>& sockets() const { return sockets_; }

  // As StageTransport's. Any thread.
  absl::Status Send(absl::Span<const std::byte> bytes, StageTransport::Done done);
  absl::Status Receive(absl::Span<std::byte> buffer, StageTransport::Done done);
  // Tells the peer, and ends both directions; Service gives back what is pending. Any thread.
  void Close();

  // The I/O thread's. `events` of epoll(7) came for that socket.
  void OnEvents(size_t socket, uint32_t events);
  // Does what there is to do; runs callbacks.
  void Service(Clock::time_point now);
  // When Service must be called though nothing happens.
  std::optional<Clock::time_point> deadline() const;
  // Ended, and every callback has run.
  bool over() const;

 private:
  // Only the first counts.
  void End(const absl::Status& status, const std::optional<Farewell>& farewell, bool broken);
  void ReadControl();
  void CheckStreams(Clock::time_point now);
  void TellBroken();
  bool ended() const;
  absl::Status Gone(absl::string_view why) const;

  const int stage_;
  const int peer_;
  const std::string peer_name_;  // "stage 1 (10.0.0.2:41234)"
  const absl::Duration dead_after_;
  const std::function<void(int, const absl::Status&)> on_broken_;
  const void* const owner_;
  const std::function<void()> wake_;
  const std::vector<UniqueFd> sockets_;
  TcpSender sender_;
  TcpReceiver receiver_;

  // The I/O thread's.
  bool control_readable_ = false;
  std::array<std::byte, Farewell::kBytes> control_;
  size_t control_bytes_ = 0;
  std::optional<Clock::time_point> patience_ends_;

  mutable std::mutex mutex_;
  bool ended_ = false;
  std::optional<absl::Status> untold_;  // what on_broken is to hear
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_TCP_LINK_H_
