#include "runtime/transport/shared_secret.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <set>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

constexpr char kToken[] = "0123456789abcdef";

std::string Write(const std::string& name, const std::string& bytes, mode_t mode = 0600) {
  const std::string path = testing::TempDir() + "/" + name;
  unlink(path.c_str());
  std::ofstream(path) << bytes;
  chmod(path.c_str(), mode);
  return path;
}

TEST(SharedSecretTest, AFilesSecretHasNoWhiteSpaceAroundIt) {
  const absl::StatusOr<SharedSecret> secret =
      SharedSecret::FromFile(Write("good", std::string(" ") + kToken + "\n"));
  ASSERT_TRUE(secret.ok()) << secret.status();
  EXPECT_EQ(secret->bytes(), kToken);
}

TEST(SharedSecretTest, AFileThatIsNoSecretIsNamedWithItsMend) {
  const auto error = [](const std::string& path) { return SharedSecret::FromFile(path).status(); };
  const absl::Status missing = error("/no/such/file");
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("/no/such/file: No such file"));
  EXPECT_THAT(std::string(missing.message()), HasSubstr("openssl rand -hex 32"));
  const absl::Status readable = error(Write("readable", kToken, 0640));
  EXPECT_EQ(readable.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(readable.message()), HasSubstr("chmod 600"));
  EXPECT_THAT(std::string(error(Write("short", "0123456789abcde\n")).message()),
              HasSubstr("holds 15 bytes, and a token has 16 to 4096"));
  EXPECT_EQ(error(Write("long", std::string(4097, 'x'))).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(SharedSecret::FromFile(Write("longest", std::string(4096, 'x'))).ok());
  EXPECT_THAT(std::string(error(testing::TempDir()).message()), HasSubstr("Is a directory"));
}

TEST(SharedSecretTest, AProofIsHmacSha256OfItsParts) {
  // Lengths of 8 bytes, little-endian, before each part: computed with Python's hmac module.
  EXPECT_EQ(absl::BytesToHexString(SharedSecret(kToken).Prove("role", {"a", "bc"})),
            "4b5bcb2e708b8c75bef46da17b68dd54b7d6c381b09b3fc6f5869da7d2d65323");
}

TEST(SharedSecretTest, AProofHoldsForItsSecretRoleAndPartsOnly) {
  const SharedSecret secret(kToken);
  const std::string proof = secret.Prove("stage", {"ab", "c"});
  EXPECT_TRUE(secret.Verify("stage", {"ab", "c"}, proof));
  EXPECT_FALSE(secret.Verify("head", {"ab", "c"}, proof));
  EXPECT_FALSE(secret.Verify("stage", {"a", "bc"}, proof));
  EXPECT_FALSE(secret.Verify("stage", {"ab", "c", ""}, proof));
  EXPECT_FALSE(SharedSecret("0123456789abcdeg").Verify("stage", {"ab", "c"}, proof));
  std::string wrong = proof;
  wrong.back() ^= 1;
  EXPECT_FALSE(secret.Verify("stage", {"ab", "c"}, wrong));
  EXPECT_FALSE(secret.Verify("stage", {"ab", "c"}, proof.substr(0, 31)));
  EXPECT_FALSE(secret.Verify("stage", {"ab", "c"}, ""));
}

TEST(SharedSecretTest, RandomOnesDiffer) {
  std::set<std::string> seen;
  for (int i = 0; i < 100; ++i) {
    seen.insert(SharedSecret::Random().bytes());
    seen.insert(RandomNonce());
  }
  EXPECT_EQ(seen.size(), 200u);
  EXPECT_EQ(SharedSecret::Random().bytes().size(), 64u);
  EXPECT_EQ(RandomNonce().size(), SharedSecret::kNonceBytes);
}

TEST(SharedSecretTest, Sha256IsTheStandards) {
  // FIPS 180-2, appendix B.1.
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

}  // namespace
}  // namespace fabricast
