// How a connection between two stages begins: both prove the secret and agree on what it is for.
//
//   dialler                                       acceptor
//   Hello: version, session, stages, stream,
//          nonce                            ->
//                                           <-    Verdict; nonce, proof over Hello and nonce
//   proof over all of that                  ->
//                                           <-    Verdict
//
// A Verdict is the go-ahead or why not; its first 16 bytes, and Hello's, are the same in every wire
// version. Session and stage are judged only when the dialler has proved the secret. Both proofs
// name their role, so that none can be sent back to its maker.
//
// These are the two sides without a connection: pure, and of bounded size.
#ifndef FABRICAST_RUNTIME_TRANSPORT_TCP_HANDSHAKE_H_
#define FABRICAST_RUNTIME_TRANSPORT_TCP_HANDSHAKE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "runtime/transport/shared_secret.h"

namespace fabricast {

// Of all that follows on a connection, segments included.
inline constexpr uint32_t kTcpWireVersion = 1;

// What a connection is for.
struct StreamClaim {
  int from = 0;  // the dialler's stage
  int to = 0;    // the acceptor's
  int stream = 0;
  int streams = 0;  // of this link
};

// One side. Give it what it wants, send what it says, until it wants nothing or Take fails.
class Handshake {
 public:
  static constexpr size_t kMostWanted = 128;

  virtual ~Handshake() = default;
  // Bytes to give to Take, exactly; 0 when both sides have agreed. At most kMostWanted.
  virtual size_t wanted() const = 0;
  // Appends what is to be sent to `reply`, also if it fails: the peer may be told why.
  // kFailedPrecondition: the other says no. kInvalidArgument: it does not speak this protocol.
  // kPermissionDenied: it does not know the secret.
  virtual absl::Status Take(absl::string_view bytes, std::string* reply) = 0;
};

// Sends `hello()` first.
class Dialler : public Handshake {
 public:
  // `nonce` is RandomNonce().
  Dialler(SharedSecret secret, absl::string_view session, const StreamClaim& claim,
          absl::string_view nonce);

  const std::string& hello() const { return hello_; }
  size_t wanted() const override;
  absl::Status Take(absl::string_view bytes, std::string* reply) override;

 private:
  enum class Step { kFirstVerdict, kProof, kLastVerdict, kOver };
  const SharedSecret secret_;
  const StreamClaim claim_;
  const std::string hello_;
  std::string challenge_;
  Step step_ = Step::kFirstVerdict;
};

class Acceptor : public Handshake {
 public:
  struct Expected {
    std::string session;
    int stage = 0;                            // who accepts
    int streams = 0;                          // of each link
    std::function<bool(int stage)> may_dial;  // whether that stage is to dial this one
  };

  Acceptor(SharedSecret secret, Expected expected, absl::string_view nonce);

  size_t wanted() const override;
  absl::Status Take(absl::string_view bytes, std::string* reply) override;
  // What the dialler says, unproved until wanted() is 0; from its Hello on.
  const std::optional<StreamClaim>& claim() const { return claim_; }

 private:
  enum class Step { kPrefix, kHello, kProof, kOver };
  absl::Status TakePrefix(absl::string_view bytes, std::string* reply);
  absl::Status TakeHello(absl::string_view bytes, std::string* reply);
  absl::Status TakeProof(absl::string_view proof, std::string* reply);

  const SharedSecret secret_;
  const Expected expected_;
  const std::string nonce_;
  std::string hello_;
  std::optional<StreamClaim> claim_;
  std::string challenge_;
  Step step_ = Step::kPrefix;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_TCP_HANDSHAKE_H_
