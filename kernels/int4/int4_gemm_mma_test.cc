// Needs a GPU: tools/gpu_tests runs it.

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/int4/int4_gemm.h"
#include "kernels/int4/int4_gemm_case.h"

namespace fabricast {
namespace {

constexpr int kMostTokens = 64;
constexpr Int4GemmKernel kMma = {.format = ActivationFormat::kMma,
                                 .multiply = Int4GemmMma,
                                 .workspace_bytes = Int4GemmMmaWorkspaceBytes,
                                 .most_biased_tokens = 16};

TEST(Int4GemmMmaTest, EveryNumberOfTokensIsRightWhenManyCtasShareATile) {
  // 8 tiles x 16 groups on 108 or more multiprocessors.
  Int4GemmCase product(kMma, SyntheticReference(1, 1024, 2048), kMostTokens);
  for (int tokens = 1; tokens <= kMostTokens; ++tokens) {
    product.Check(tokens, kOutputKinds[tokens % 3]);
    if (HasFatalFailure()) return;
  }
}

TEST(Int4GemmMmaTest, OddShapesAreRightAndNothingBeyondIsWritten) {
  for (const auto& [outputs, inputs] : {std::pair{8, 128},
                                        {128, 128},
                                        {136, 256},
                                        {300, 200},
                                        {77, 1000},
                                        {384, 4096},
                                        {640, 384},
                                        {2050, 131}}) {
    Int4GemmCase product(kMma, SyntheticReference(2, outputs, inputs), kMostTokens);
    for (const int tokens : {1, 5, 8, 9, 16, 23, 32, 33, 64}) {
      for (const OutputKind kind : kOutputKinds) product.Check(tokens, kind, 8 * (tokens % 3));
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Int4GemmMmaTest, ManyTilesACtaAreRight) {
  // 34,048 rows are 266 tiles of 128, 2 a CTA of an H200, and 133 of 256: one more than CTAs.
  Int4GemmCase product(kMma, SyntheticReference(3, 34048, 384), kMostTokens);
  for (const int tokens : {1, 16, 32, 64}) {
    product.Check(tokens, OutputKind::kBf16);
    if (HasFatalFailure()) return;
  }
}

TEST(Int4GemmMmaTest, LargestQuantsAndInputsOfOneSignDoNotOverflow) {
  Int4GemmCase product(kMma, LargestInt4(256, 1024), kMostTokens);
  product.SetRows(std::vector<uint16_t>(kMostTokens * 1024, Bf16FromFloat(255)));
  for (const int tokens : {1, 16, 32, 64}) product.Check(tokens, OutputKind::kF32);
}

TEST(Int4GemmMmaTest, ScalesOfARowMayDifferWidely) {
  Int4GemmCase product(kMma, WidelyScaledInt4(384, 2048), kMostTokens);
  for (const int tokens : {1, 16, 32, 64}) product.Check(tokens, OutputKind::kF32);
}

TEST(Int4GemmMmaTest, ResultsAreTheSameBitsEachTime) {
  Int4GemmCase product(kMma, SyntheticReference(5, 1024, 2048), kMostTokens);
  for (const int tokens : {1, 13, 32, 64}) product.CheckRepeats(tokens);
}

TEST(Int4GemmMmaTest, OverlappingLaunchesInAGraphGiveTheSameBits) {
  Int4GemmCase product(kMma, SyntheticReference(6, 1024, 1024), kMostTokens);
  for (const int tokens : {1, 8, 16, 32, 64}) product.CheckOverlappingGraph(tokens);
}

TEST(Int4GemmMmaTest, InputsAndOutputsThatDoNotFitAreRefused) {
  const Int4Matrix weights = {.outputs = 256, .inputs = 256};
  const auto multiply = [&](ActivationFormat format, int tokens, int64_t inputs, int64_t stride) {
    const Activations input = {.layout = {.format = format, .tokens = tokens, .inputs = inputs}};
    return Int4GemmMma(weights, input, {.stride = stride}, nullptr, {}).code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(multiply(ActivationFormat::kWgmma, 1, 256, 256), kInvalid);
  EXPECT_EQ(multiply(ActivationFormat::kMma, 0, 256, 256), kInvalid);
  EXPECT_EQ(multiply(ActivationFormat::kMma, 65, 256, 256), kInvalid);
  EXPECT_EQ(multiply(ActivationFormat::kMma, 1, 128, 256), kInvalid);
  EXPECT_EQ(multiply(ActivationFormat::kMma, 1, 256, 255), kInvalid);
  EXPECT_EQ(multiply(ActivationFormat::kMma, 1, 256, 252), kInvalid);
}

}  // namespace
}  // namespace fabricast
