// Stages on GPUs of one or several hosts, each a process, joined by NCCL's point-to-point calls.
//
// Each direction of a link is a communicator of two ranks with a stream of its own. What is not
// activations goes another way (the side channel): NCCL's identifiers, the lengths of messages, and
// why an end goes. It is also where a death shows, so that a peer that is merely slow is never
// taken for a dead one.
//
// The two GPUs meet before each transfer (shared_counters.h), so that it holds multiprocessors only
// while bytes move: NCCL's own kernels would wait for one another on them. On one host they do so
// by themselves. Between hosts the processors tell each other over the side channel what the GPUs
// have come to, which takes its latency a transfer, and a look every 20 us while a GPU is on its
// way to one.
#ifndef FABRICAST_RUNTIME_TRANSPORT_NCCL_TRANSPORT_H_
#define FABRICAST_RUNTIME_TRANSPORT_NCCL_TRANSPORT_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/nccl/nccl.h"
#include "runtime/transport/device_transport.h"
#include "runtime/transport/stage_transport.h"

namespace fabricast {

// How the two GPUs of a link come together for a transfer.
enum class NcclMeeting {
  kNone,     // by NCCL's kernels, which spin on a multiprocessor a channel
  kRelayed,  // by counters of their own, which the processors relay
  kShared,   // by counters that both see
};

struct NcclLinks {
  int stage = 0;
  // Directions that are used; the peers say the same of theirs.
  std::vector<int> receive_from;
  std::vector<int> send_to;
  // Blocks that move a message at most, a power of two: how fast a long one goes, how many
  // multiprocessors it holds meanwhile, and some 13 MB each of the GPU's memory a direction. Over
  // NVLink 1, 4 and 16 take 22, 18 and 17 us for 32 KiB and 2.0, 0.5 and 0.3 ms for 64 MiB
  // (benchmarks/results/nccl_links.md).
  int channels = 4;
  // The lesser that the two ends ask for, and that is possible, is taken.
  NcclMeeting meeting = NcclMeeting::kShared;
  // A link broke, also if nothing was pending on it, or its peer closed it; the status is what
  // `done`s get. Once a peer, on any thread, before the `done`s that are pending, never after Close
  // has returned nor because of it; must not block, but may call Close.
  std::function<void(int peer, const absl::Status&)> on_broken;
};

// Joins this stage's current GPU to its peers', who do the same at about the same time. `side`
// joins the same stages, has carried nothing else yet, and belongs to the transport from then on.
// Its links end with these and the other way round.
//
// kDeadlineExceeded if a peer has not come by `deadline`, and whatever ends a link of `side`.
absl::StatusOr<std::unique_ptr<DeviceTransport>> MakeNcclTransport(
    std::shared_ptr<Nccl> nccl, std::unique_ptr<StageTransport> side, const NcclLinks& links,
    absl::Time deadline);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_NCCL_TRANSPORT_H_
