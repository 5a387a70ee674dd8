// Stands between two ends of TCP connections, over IPv4, and fails on demand.
#ifndef FABRICAST_RUNTIME_TRANSPORT_RELAY_H_
#define FABRICAST_RUNTIME_TRANSPORT_RELAY_H_

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/transport/tcp_socket.h"

namespace fabricast {

// Whoever connects to `address()` is connected with `target`. Thread-safe.
class Relay {
 public:
  explicit Relay(const std::string& target);
  ~Relay();  // closes all as Reset does

  const std::string& address() const { return address_; }

  // All connections end with a reset, and further ones are closed: the far host's process is dead.
  void Reset();
  // All connections end as when a process ends that has read everything.
  void Finish();
  // The kernels hear nothing of one another any more: the cable is cut.
  void Cut();
  // Passes that many bytes more, all connections and directions together, and then none.
  void StopAfter(int64_t bytes);
  // Waits until it has passed what StopAfter gave it.
  void WaitUntilStopped();

 private:
  struct Pipe {
    UniqueFd near;
    UniqueFd far;
    std::thread there;
    std::thread back;
  };
  void Accept();
  void Copy(int from, int to);
  void EndAll(bool reset);

  const SocketAddress target_;
  UniqueFd listener_;
  std::string address_;
  std::thread acceptor_;
  std::mutex mutex_;
  bool ended_ = false;
  std::atomic<int64_t> allowance_ = INT64_MAX;
  std::vector<std::unique_ptr<Pipe>> pipes_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_RELAY_H_
