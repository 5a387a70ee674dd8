// Proof that a peer knows what all processes of a pipeline know, without sending it.
//
// Each side sends a nonce and answers the other's with HMAC-SHA256 (RFC 2104) over both nonces, its
// role, and what it claims to be. A proof is worthless on any other connection. This says who is
// there when a connection begins; it does not encrypt, nor protect what follows (docs/security.md).
#ifndef FABRICAST_RUNTIME_TRANSPORT_SHARED_SECRET_H_
#define FABRICAST_RUNTIME_TRANSPORT_SHARED_SECRET_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace fabricast {

// Copyable, immutable, thread-safe.
class SharedSecret {
 public:
  static constexpr size_t kMinBytes = 16;
  static constexpr size_t kMaxBytes = 4096;
  static constexpr size_t kProofBytes = 32;
  static constexpr size_t kNonceBytes = 32;

  // The file's bytes, without white space around them. kNotFound, kPermissionDenied if others than
  // its owner may read a regular file, kInvalidArgument outside the lengths above; each names the
  // file and the mend. Also reads a pipe ("/dev/fd/7").
  static absl::StatusOr<SharedSecret> FromFile(const std::string& path);

  // 32 random bytes, as 64 hexadecimal digits.
  static SharedSecret Random();

  // CHECKs the lengths above.
  explicit SharedSecret(absl::string_view bytes);

  // kProofBytes over `role` and `parts`; parts cannot run into one another.
  std::string Prove(absl::string_view role, absl::Span<const absl::string_view> parts) const;
  // In a time that does not depend on `proof`'s bytes.
  bool Verify(absl::string_view role, absl::Span<const absl::string_view> parts,
              absl::string_view proof) const;

  // To hand to a child process.
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

// kNonceBytes that nobody can foretell.
std::string RandomNonce();

// SHA-256 in lower-case hexadecimal digits.
std::string Sha256Hex(absl::string_view bytes);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_SHARED_SECRET_H_
