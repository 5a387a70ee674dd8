// Carries activations between the memories of GPUs, in the order of the GPUs' own work: neither
// side's processor waits for its GPU.
#ifndef FABRICAST_RUNTIME_TRANSPORT_DEVICE_TRANSPORT_H_
#define FABRICAST_RUNTIME_TRANSPORT_DEVICE_TRANSPORT_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/gpu/gpu_stream.h"
#include "runtime/transport/stage_transport.h"

namespace fabricast {

// A StageTransport whose bytes are in the memory of the stage's GPU. The calls that it inherits may
// be used as well: their bytes are ready, or free, when they are called.
//
// A transfer is put into a stream of its link at once, and moves when both GPUs have come to it.
// Links do not wait for one another, nor does a link's receiving side for its sending side. At most
// kMostTransfers of a direction are between their call and `done`: of those that follow, Send and
// Receive wait in the host's memory, SendAfter and ReceiveAfter are kResourceExhausted.
//
// When a link ends the GPU's work that waits for it goes on, with bytes that mean nothing, and may
// have written to buffers; whoever enqueued it hears so by `done`.
class DeviceTransport : public StageTransport {
 public:
  static constexpr int kMostTransfers = 32;

  // As Send, of bytes that are there once the GPU has reached `ready`.
  virtual absl::Status SendAfter(GpuEventHandle ready, int to, absl::Span<const std::byte> bytes,
                                 Done done) = 0;

  // As Receive, into bytes that may be written once the GPU has reached `free` (null: now); then
  // records `arrived`. Both belong to the caller, until `done` has run.
  virtual absl::Status ReceiveAfter(GpuEventHandle free, int from, absl::Span<std::byte> buffer,
                                    GpuEventHandle arrived, Done done) = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_DEVICE_TRANSPORT_H_
