// What is timed: messages over a StageTransport, and the same bytes over one plain blocking socket.
//
// Each loop has two sides that are called at the same time, in one process or two: the client
// measures, the server is its counterpart.
#ifndef FABRICAST_BENCHMARKS_TRANSPORT_LOOPS_H_
#define FABRICAST_BENCHMARKS_TRANSPORT_LOOPS_H_

#include <cstddef>
#include <vector>

#include "runtime/transport/stage_transport.h"
#include "runtime/transport/tcp_socket.h"

namespace fabricast {

struct Load {
  size_t message_bytes = 0;
  int messages = 0;
};

// Messages in flight on either side. Enough that a pipe is never empty, as with micro-batches.
inline constexpr int kWindow = 16;

// Client: seconds until the server has told that it has all. CHECKs that nothing fails; with
// `verify`, that all bytes arrive as they were.
double StreamClient(StageTransport& to_1, const Load& load);
void StreamServer(StageTransport& to_0, const Load& load, bool verify);
// Client: seconds of each message there and back. Answers come from `done`.
std::vector<double> PingPongClient(StageTransport& to_1, const Load& load);
void PingPongServer(StageTransport& to_0, const Load& load);

double PlainStreamClient(const UniqueFd& socket, const Load& load);
void PlainStreamServer(const UniqueFd& socket, const Load& load);
std::vector<double> PlainPingPongClient(const UniqueFd& socket, const Load& load);
void PlainPingPongServer(const UniqueFd& socket, const Load& load);

// Blocking sockets with TCP_NODELAY. The client dials until the server listens. CHECKs.
UniqueFd PlainDial(const SocketAddress& server);
UniqueFd PlainAccept(const SocketAddress& server);

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_TRANSPORT_LOOPS_H_
