// Needs a GPU: tools/gpu_tests runs it.

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/int4/int4_gemm.h"
#include "kernels/int4/int4_gemm_case.h"

namespace fabricast {
namespace {

constexpr Int4GemmKernel kWgmma = {.format = ActivationFormat::kWgmma,
                                   .multiply = Int4GemmWgmma,
                                   .workspace_bytes = Int4GemmWgmmaWorkspaceBytes,
                                   .most_biased_tokens = 0};

// 10 x major + minor.
int ComputeCapability() {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
  return 10 * major + minor;
}

class Int4GemmWgmmaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (ComputeCapability() != 90) GTEST_SKIP() << "needs compute capability 9.0";
  }
};

TEST_F(Int4GemmWgmmaTest, AnyNumberOfTokensIsRightWhenManyBlocksShareATile) {
  // 2,500 tokens are two launches of 8 token tiles and one of 4.
  Int4GemmCase product(kWgmma, SyntheticReference(1, 640, 1024), 2500);
  int i = 0;
  for (const int tokens :
       {1,   8,   15,  16,  17,  23,  32,  33,  48,  49,  63,  64,   65,   80,   96,  97,
        100, 128, 129, 192, 193, 200, 256, 300, 512, 777, 896, 1000, 1024, 1025, 2500}) {
    product.Check(tokens, kOutputKinds[i++ % 3]);
    if (HasFatalFailure()) return;
  }
}

TEST_F(Int4GemmWgmmaTest, OddShapesAreRightAndNothingBeyondIsWritten) {
  for (const auto& [outputs, inputs] : {std::pair{8, 128},
                                        {128, 128},
                                        {136, 256},
                                        {300, 200},
                                        {77, 1000},
                                        {384, 4096},
                                        {640, 384},
                                        {2050, 131}}) {
    Int4GemmCase product(kWgmma, SyntheticReference(2, outputs, inputs), 200);
    for (const int tokens : {1, 23, 32, 41, 64, 77, 128, 200}) {
      for (const OutputKind kind : kOutputKinds) product.Check(tokens, kind, 8 * (tokens % 3));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(Int4GemmWgmmaTest, ManyTilesABlockAreRight) {
  // 70,144 outputs are 137 tiles of 512, or 274 of 256; an H200 has 132 multiprocessors.
  Int4GemmCase product(kWgmma, SyntheticReference(3, 70144, 256), 66);
  for (const int tokens : {17, 48, 64, 66}) {
    product.Check(tokens, OutputKind::kBf16);
    if (HasFatalFailure()) return;
  }
}

TEST_F(Int4GemmWgmmaTest, LargestQuantsAndInputsOfOneSignDoNotOverflow) {
  Int4GemmCase product(kWgmma, LargestInt4(256, 1024), 130);
  product.SetRows(std::vector<uint16_t>(130 * 1024, Bf16FromFloat(255)));
  for (const int tokens : {1, 33, 64, 96, 130}) product.Check(tokens, OutputKind::kF32);
}

TEST_F(Int4GemmWgmmaTest, ScalesOfARowMayDifferWidely) {
  Int4GemmCase product(kWgmma, WidelyScaledInt4(384, 2048), 130);
  for (const int tokens : {1, 33, 64, 96, 130}) product.Check(tokens, OutputKind::kF32);
}

TEST_F(Int4GemmWgmmaTest, ResultsAreTheSameBitsEachTime) {
  Int4GemmCase product(kWgmma, SyntheticReference(5, 1024, 2048), 300);
  for (const int tokens : {17, 48, 64, 96, 300}) product.CheckRepeats(tokens);
}

TEST_F(Int4GemmWgmmaTest, OverlappingLaunchesInAGraphGiveTheSameBits) {
  Int4GemmCase product(kWgmma, SyntheticReference(6, 1024, 1024), 1100);
  for (const int tokens : {17, 48, 64, 96, 300, 1100}) product.CheckOverlappingGraph(tokens);
}

absl::StatusCode MultiplyNothing(ActivationFormat format, int tokens, int64_t inputs,
                                 int64_t stride) {
  const Int4Matrix weights = {.outputs = 256, .inputs = 256};
  const Activations input = {.layout = {.format = format, .tokens = tokens, .inputs = inputs}};
  return Int4GemmWgmma(weights, input, {.stride = stride}, nullptr, {}).code();
}

TEST(Int4GemmWgmmaRefusalTest, InputsAndOutputsThatDoNotFitAreRefused) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(MultiplyNothing(ActivationFormat::kMma, 1, 256, 256), kInvalid);
  EXPECT_EQ(MultiplyNothing(ActivationFormat::kWgmma, 0, 256, 256), kInvalid);
  EXPECT_EQ(MultiplyNothing(ActivationFormat::kWgmma, 1, 128, 256), kInvalid);
  EXPECT_EQ(MultiplyNothing(ActivationFormat::kWgmma, 1, 256, 255), kInvalid);
  EXPECT_EQ(MultiplyNothing(ActivationFormat::kWgmma, 1, 256, 252), kInvalid);
}

TEST(Int4GemmWgmmaRefusalTest, GpuWithoutWgmmaIsRefused) {
  if (ComputeCapability() == 90) GTEST_SKIP() << "this one has it";
  EXPECT_EQ(MultiplyNothing(ActivationFormat::kWgmma, 1, 256, 256),
            absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace fabricast
