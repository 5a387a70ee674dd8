// Finding NCCL, on a machine with or without it.

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/nccl/nccl.h"

namespace fabricast {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(NcclLoadTest, MissingLibraryIsNamedWithEveryPlaceThatWasTriedAndItsPackage) {
  const absl::Status status =
      Nccl::Load({"libnccl_is_not_here.so.2", "/nowhere/libnccl.so.2"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  for (const char* part : {"NCCL cannot be loaded", "libnccl_is_not_here.so.2",
                           "/nowhere/libnccl.so.2", "libnccl2", "LD_LIBRARY_PATH"}) {
    EXPECT_THAT(Message(status), HasSubstr(part));
  }
}

TEST(NcclLoadTest, AnotherLibraryIsNotTakenForIt) {
  const absl::Status status = Nccl::Load({"/nowhere/libnccl.so.2", "libm.so.6"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), HasSubstr("libm.so.6 lacks ncclGetVersion"));
}

TEST(NcclLoadTest, OneThatIsTooOldIsNamedWithItsVersionAndTheOneThatIsNeeded) {
  const absl::Status status = Nccl::Load({"runtime/nccl/libold_nccl.so"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("libold_nccl.so is NCCL 2.8.4"), HasSubstr("install 2.17 or newer")));
}

TEST(NcclLoadTest, SearchesTheLinkersFoldersThenTheToolkits) {
  ASSERT_EQ(setenv("CUDA_HOME", "/opt/cuda", 1), 0);
  ASSERT_EQ(setenv("CUDA_PATH", "", 1), 0);
  EXPECT_EQ(Nccl::Libraries(),
            (std::vector<std::string>{"libnccl.so.2", "/opt/cuda/lib64/libnccl.so.2",
                                      "/usr/local/cuda/lib64/libnccl.so.2"}));
}

TEST(NcclLoadTest, WithoutLibraryItIsUnavailableAndElseItTellsItsVersion) {
  const absl::StatusOr<std::shared_ptr<Nccl>> nccl = Nccl::Load();
  if (!nccl.ok()) {
    EXPECT_EQ(nccl.status().code(), absl::StatusCode::kUnavailable) << nccl.status();
    return;
  }
  EXPECT_GE((*nccl)->version(), 21700);
  EXPECT_THAT((*nccl)->name(), HasSubstr("NCCL 2."));
}

}  // namespace
}  // namespace fabricast
