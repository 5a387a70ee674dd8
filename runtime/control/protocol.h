// What both ends of the control plane agree on (control.proto).
#ifndef FABRICAST_RUNTIME_CONTROL_PROTOCOL_H_
#define FABRICAST_RUNTIME_CONTROL_PROTOCOL_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/support/status.h"
#include "runtime/control/control.pb.h"

namespace fabricast {

// Changes when either end would misread the other.
constexpr uint32_t kControlProtocol = 1;

constexpr absl::Duration kPingInterval = absl::Milliseconds(500);

// Of one message. A stage's are cut to fit, so that the head accepts no more even of peers that it
// does not know yet. A step of 8,192 requests with all that it says of each takes less than 1 MB.
constexpr int kMaxBytesFromStage = 64 * 1024;
constexpr int kMaxBytesFromHead = 64 * 1024 * 1024;

// What must be the same at both ends, by name ("topology", "model"): SHA-256, in hexadecimal.
using Fingerprints = std::map<std::string, std::string>;

// What a proof is of: the hello as it was sent.
std::string Claim(const control::Hello& hello);

int64_t MonotonicNanoseconds();  // of std::chrono::steady_clock
std::string BootId();            // of the running kernel; empty if it does not say
std::string HostName();

// gRPC prints what it meets; what matters of that is in the statuses that we print. Unless
// $GRPC_VERBOSITY asks for it.
void QuietGrpc();

absl::Status FromGrpc(const grpc::Status& status);
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_CONTROL_PROTOCOL_H_
