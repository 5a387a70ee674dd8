#include "runtime/transport/shared_secret.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

constexpr char kMake[] = "make one with: (umask 077; openssl rand -hex 32 > FILE)";

std::string RandomBytes(size_t count) {
  std::string bytes(count, '\0');
  FABRICAST_CHECK(
      RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(count)) == 1)
      << "the system has no random bytes";
  return bytes;
}

void AppendPart(std::string& message, absl::string_view part) {
  const uint64_t size = part.size();
  for (int shift = 0; shift < 64; shift += 8) {
    message.push_back(static_cast<char>((size >> shift) & 0xff));
  }
  message.append(part.data(), part.size());
}

}  // namespace

absl::StatusOr<SharedSecret> SharedSecret::FromFile(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    const std::string why = absl::StrCat("token file ", path, ": ", std::strerror(errno));
    if (errno == ENOENT) return absl::NotFoundError(absl::StrCat(why, "; ", kMake));
    return absl::PermissionDeniedError(absl::StrCat(why, "; its owner must run this"));
  }
  struct stat status = {};
  std::string bytes;
  int error = fstat(file, &status) == 0 ? 0 : errno;
  while (error == 0 && bytes.size() <= kMaxBytes) {
    char buffer[1024];
    const ssize_t got = read(file, buffer, sizeof(buffer));
    if (got == 0) break;
    if (got > 0) {
      bytes.append(buffer, got);
    } else if (errno != EINTR) {
      error = errno;
    }
  }
  close(file);
  if (error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("token file ", path, ": ", std::strerror(error)));
  }
  if (S_ISREG(status.st_mode) && (status.st_mode & 077) != 0) {
    return absl::PermissionDeniedError(absl::StrCat("token file ", path,
                                                    ": others than its owner may read it; chmod "
                                                    "600 it, and if they did, replace it: ",
                                                    kMake));
  }
  bytes = std::string(absl::StripAsciiWhitespace(bytes));
  if (bytes.size() < kMinBytes || bytes.size() > kMaxBytes) {
    return absl::InvalidArgumentError(absl::StrCat("token file ", path, ": holds ", bytes.size(),
                                                   " bytes, and a token has ", kMinBytes, " to ",
                                                   kMaxBytes, "; ", kMake));
  }
  return SharedSecret(bytes);
}

SharedSecret SharedSecret::Random() {
  return SharedSecret(absl::BytesToHexString(RandomBytes(32)));
}

SharedSecret::SharedSecret(absl::string_view bytes) : bytes_(bytes) {
  FABRICAST_CHECK(bytes.size() >= kMinBytes && bytes.size() <= kMaxBytes) << bytes.size();
}

std::string SharedSecret::Prove(absl::string_view role,
                                absl::Span<const absl::string_view> parts) const {
  std::string message;
  AppendPart(message, role);
  for (const absl::string_view part : parts) AppendPart(message, part);
  std::string proof(kProofBytes, '\0');
  unsigned int size = 0;
  const unsigned char* const made =
      HMAC(EVP_sha256(), bytes_.data(), static_cast<int>(bytes_.size()),
           reinterpret_cast<const unsigned char*>(message.data()), message.size(),
           reinterpret_cast<unsigned char*>(proof.data()), &size);
  FABRICAST_CHECK(made != nullptr && size == kProofBytes) << size;
  return proof;
}

bool SharedSecret::Verify(absl::string_view role, absl::Span<const absl::string_view> parts,
                          absl::string_view proof) const {
  if (proof.size() != kProofBytes) return false;
  const std::string expected = Prove(role, parts);
  return CRYPTO_memcmp(expected.data(), proof.data(), kProofBytes) == 0;
}

std::string RandomNonce() { return RandomBytes(SharedSecret::kNonceBytes); }

std::string Sha256Hex(absl::string_view bytes) {
  std::string digest(32, '\0');
  unsigned int size = 0;
  FABRICAST_CHECK(EVP_Digest(bytes.data(), bytes.size(),
                             reinterpret_cast<unsigned char*>(digest.data()), &size, EVP_sha256(),
                             nullptr) == 1)
      << "SHA-256";
  return absl::BytesToHexString(digest);
}

}  // namespace fabricast
