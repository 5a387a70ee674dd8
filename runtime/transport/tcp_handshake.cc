#include "runtime/transport/tcp_handshake.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "runtime/check.h"
#include "runtime/transport/little_endian.h"

namespace fabricast {
namespace {

constexpr absl::string_view kMagic = "fabricst";
constexpr absl::string_view kDiallerRole = "fabricast tcp dialler";
constexpr absl::string_view kAcceptorRole = "fabricast tcp acceptor";

// Magic, version, and a number: what never changes. Hello's number is 0, a Verdict's its Refusal.
constexpr size_t kPrefixBytes = 16;
constexpr size_t kSessionBytes = 32;  // SHA-256
constexpr size_t kNonceBytes = SharedSecret::kNonceBytes;
constexpr size_t kProofBytes = SharedSecret::kProofBytes;
// Prefix, from, to, stream, streams, session, nonce.
constexpr size_t kHelloBytes = kPrefixBytes + 4 * 4 + kSessionBytes + kNonceBytes;
// Prefix, and what the acceptor would have instead.
constexpr size_t kVerdictBytes = kPrefixBytes + 8;
constexpr size_t kChallengeBytes = kNonceBytes + kProofBytes;
static_assert(kHelloBytes <= Handshake::kMostWanted);
static_assert(kChallengeBytes <= Handshake::kMostWanted);

enum class Refusal : uint32_t {
  kNone = 0,
  kVersion = 1,
  kSecret = 2,
  kSession = 3,
  kStage = 4,
  kStreams = 5,
};

template <typename T>
void Append(T value, std::string* to) {
  char bytes[sizeof(T)];
  StoreLittleEndian(value, bytes);
  to->append(bytes, sizeof(T));
}

std::string Prefix(uint32_t number) {
  std::string prefix(kMagic.data(), kMagic.size());
  Append(kTcpWireVersion, &prefix);
  Append(number, &prefix);
  return prefix;
}

std::string HashOf(absl::string_view session) {
  const std::string hash = absl::HexStringToBytes(Sha256Hex(session));
  FABRICAST_CHECK(hash.size() == kSessionBytes) << hash.size();
  return hash;
}

std::string Hello(absl::string_view session, const StreamClaim& claim, absl::string_view nonce) {
  FABRICAST_CHECK(nonce.size() == kNonceBytes) << nonce.size();
  std::string hello = Prefix(0);
  for (const int number : {claim.from, claim.to, claim.stream, claim.streams}) {
    Append(static_cast<uint32_t>(number), &hello);
  }
  absl::StrAppend(&hello, HashOf(session), nonce);
  return hello;
}

void AppendVerdict(Refusal refusal, uint64_t instead, std::string* to) {
  absl::StrAppend(to, Prefix(static_cast<uint32_t>(refusal)));
  Append(instead, to);
}

// OK if it is the go-ahead; otherwise what the acceptor has against it.
absl::Status ReadVerdict(absl::string_view verdict, const StreamClaim& claim) {
  if (verdict.substr(0, kMagic.size()) != kMagic) {
    return absl::InvalidArgumentError("another program answers there");
  }
  const uint32_t version = LoadLittleEndian<uint32_t>(verdict.data() + 8);
  const uint32_t refusal = LoadLittleEndian<uint32_t>(verdict.data() + 12);
  const uint64_t instead = LoadLittleEndian<uint64_t>(verdict.data() + 16);
  if (version != kTcpWireVersion) {
    return absl::FailedPreconditionError(absl::StrCat("it has wire version ", version, ", this ",
                                                      kTcpWireVersion,
                                                      ": run the same build everywhere"));
  }
  switch (static_cast<Refusal>(refusal)) {
    case Refusal::kNone:
      return absl::OkStatus();
    case Refusal::kSecret:
      return absl::FailedPreconditionError("it has another secret: give all the same token file");
    case Refusal::kSession:
      return absl::FailedPreconditionError("it belongs to another session");
    case Refusal::kStage:
      return absl::FailedPreconditionError(
          absl::StrCat("it is stage ", instead, " and has no link with stage ", claim.from));
    case Refusal::kStreams:
      return absl::FailedPreconditionError(absl::StrCat("it wants ", instead,
                                                        " connections a link, this ", claim.streams,
                                                        ": give all the same"));
    case Refusal::kVersion:
      break;
  }
  return absl::FailedPreconditionError(absl::StrCat("it refused, code ", refusal));
}

}  // namespace

Dialler::Dialler(SharedSecret secret, absl::string_view session, const StreamClaim& claim,
                 absl::string_view nonce)
    : secret_(std::move(secret)), claim_(claim), hello_(Hello(session, claim, nonce)) {}

size_t Dialler::wanted() const {
  switch (step_) {
    case Step::kFirstVerdict:
    case Step::kLastVerdict:
      return kVerdictBytes;
    case Step::kProof:
      return kChallengeBytes;
    case Step::kOver:
      break;
  }
  return 0;
}

absl::Status Dialler::Take(absl::string_view bytes, std::string* reply) {
  FABRICAST_CHECK(bytes.size() == wanted() && step_ != Step::kOver) << bytes.size();
  if (step_ != Step::kProof) {
    if (absl::Status status = ReadVerdict(bytes, claim_); !status.ok()) return status;
    step_ = step_ == Step::kFirstVerdict ? Step::kProof : Step::kOver;
    return absl::OkStatus();
  }
  const absl::string_view nonce = bytes.substr(0, kNonceBytes);
  const absl::string_view proof = bytes.substr(kNonceBytes);
  if (!secret_.Verify(kAcceptorRole, {hello_, nonce}, proof)) {
    return absl::PermissionDeniedError(
        "it does not know this pipeline's secret: give all the same token file");
  }
  absl::StrAppend(reply, secret_.Prove(kDiallerRole, {hello_, nonce}));
  step_ = Step::kLastVerdict;
  return absl::OkStatus();
}

Acceptor::Acceptor(SharedSecret secret, Expected expected, absl::string_view nonce)
    : secret_(std::move(secret)), expected_(std::move(expected)), nonce_(nonce) {
  FABRICAST_CHECK(nonce_.size() == kNonceBytes) << nonce_.size();
}

size_t Acceptor::wanted() const {
  switch (step_) {
    case Step::kPrefix:
      return kPrefixBytes;
    case Step::kHello:
      return kHelloBytes - kPrefixBytes;
    case Step::kProof:
      return kProofBytes;
    case Step::kOver:
      break;
  }
  return 0;
}

absl::Status Acceptor::Take(absl::string_view bytes, std::string* reply) {
  FABRICAST_CHECK(bytes.size() == wanted() && step_ != Step::kOver) << bytes.size();
  if (step_ == Step::kPrefix) return TakePrefix(bytes, reply);
  if (step_ == Step::kHello) return TakeHello(bytes, reply);
  return TakeProof(bytes, reply);
}

absl::Status Acceptor::TakePrefix(absl::string_view bytes, std::string* reply) {
  if (bytes.substr(0, kMagic.size()) != kMagic) {
    return absl::InvalidArgumentError("another program dials");
  }
  const uint32_t version = LoadLittleEndian<uint32_t>(bytes.data() + 8);
  if (version != kTcpWireVersion) {
    AppendVerdict(Refusal::kVersion, kTcpWireVersion, reply);
    return absl::FailedPreconditionError(absl::StrCat("it has wire version ", version, ", this ",
                                                      kTcpWireVersion,
                                                      ": run the same build everywhere"));
  }
  hello_ = std::string(bytes);
  step_ = Step::kHello;
  return absl::OkStatus();
}

absl::Status Acceptor::TakeHello(absl::string_view bytes, std::string* reply) {
  absl::StrAppend(&hello_, bytes);
  int numbers[4];
  for (int i = 0; i < 4; ++i) {
    const uint32_t number = LoadLittleEndian<uint32_t>(hello_.data() + kPrefixBytes + 4 * i);
    if (number > INT32_MAX) return absl::InvalidArgumentError("its hello is garbled");
    numbers[i] = static_cast<int>(number);
  }
  claim_ = {.from = numbers[0], .to = numbers[1], .stream = numbers[2], .streams = numbers[3]};
  AppendVerdict(Refusal::kNone, 0, reply);
  absl::StrAppend(reply, nonce_, secret_.Prove(kAcceptorRole, {hello_, nonce_}));
  step_ = Step::kProof;
  return absl::OkStatus();
}

absl::Status Acceptor::TakeProof(absl::string_view proof, std::string* reply) {
  if (!secret_.Verify(kDiallerRole, {hello_, nonce_}, proof)) {
    AppendVerdict(Refusal::kSecret, 0, reply);
    return absl::PermissionDeniedError(
        "it does not know this pipeline's secret: give all the same token file");
  }
  const std::string session = hello_.substr(kPrefixBytes + 4 * 4, kSessionBytes);
  if (session != HashOf(expected_.session)) {
    AppendVerdict(Refusal::kSession, 0, reply);
    return absl::FailedPreconditionError("it belongs to another session");
  }
  if (claim_->to != expected_.stage || !expected_.may_dial(claim_->from)) {
    AppendVerdict(Refusal::kStage, static_cast<uint64_t>(expected_.stage), reply);
    return absl::FailedPreconditionError(
        absl::StrCat("it wants stage ", claim_->to, ", this is stage ", expected_.stage));
  }
  if (claim_->streams != expected_.streams || claim_->stream >= expected_.streams) {
    AppendVerdict(Refusal::kStreams, static_cast<uint64_t>(expected_.streams), reply);
    return absl::FailedPreconditionError(absl::StrCat("it wants ", claim_->streams,
                                                      " connections a link, this ",
                                                      expected_.streams, ": give all the same"));
  }
  AppendVerdict(Refusal::kNone, 0, reply);
  step_ = Step::kOver;
  return absl::OkStatus();
}

}  // namespace fabricast
