// Finding cuBLASLt, on a machine with or without it, with or without a GPU.

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/dense/cublaslt.h"

namespace fabricast {
namespace {

using testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(CublasLtLoadTest, MissingLibraryIsNamedWithEveryPlaceThatWasTriedAndItsPackage) {
  const absl::Status status =
      CublasLt::Load({"libcublasLt_is_not_here.so.13", "/nowhere/libcublasLt.so.13"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  for (const char* part : {"cuBLASLt cannot be loaded", "libcublasLt_is_not_here.so.13",
                           "/nowhere/libcublasLt.so.13", "libcublas-13-0", "LD_LIBRARY_PATH"}) {
    EXPECT_THAT(Message(status), HasSubstr(part));
  }
}

TEST(CublasLtLoadTest, AnotherLibraryIsNotTakenForIt) {
  const absl::Status status = CublasLt::Load({"/nowhere/libcublasLt.so.13", "libm.so.6"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), HasSubstr("libm.so.6 lacks cublasLtCreate"));
}

TEST(CublasLtLoadTest, SearchesTheLinkersFoldersThenTheToolkitsAndTheNewestFirst) {
  ASSERT_EQ(setenv("CUDA_HOME", "/opt/cuda", 1), 0);
  ASSERT_EQ(setenv("CUDA_PATH", "", 1), 0);
  EXPECT_EQ(CublasLt::Libraries(),
            (std::vector<std::string>{
                "libcublasLt.so.13", "libcublasLt.so.12", "/opt/cuda/lib64/libcublasLt.so.13",
                "/opt/cuda/lib64/libcublasLt.so.12", "/usr/local/cuda/lib64/libcublasLt.so.13",
                "/usr/local/cuda/lib64/libcublasLt.so.12"}));
}

TEST(CublasLtLoadTest, WithoutLibraryOrGpuItIsUnavailableAndElseItWorks) {
  const absl::StatusOr<std::unique_ptr<CublasLt>> cublas = CublasLt::Load();
  if (cublas.ok()) {
    EXPECT_GE((*cublas)->version(), 120000);
  } else {
    EXPECT_EQ(cublas.status().code(), absl::StatusCode::kUnavailable) << cublas.status();
  }
}

}  // namespace
}  // namespace fabricast
