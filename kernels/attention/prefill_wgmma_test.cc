// Needs a GPU of compute capability 9.0: tools/gpu_tests runs it.

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/attention/attention_case.h"
#include "kernels/attention/prefill.h"

namespace fabricast {
namespace {

// Two roundings to BF16, of the weights and of the output, by at most 2^-8 each and so with a
// standard deviation of at most 2^-8 / sqrt(3): together sqrt(2 / 3) x 2^-8. One token too many or
// too few among n is an error of 1 / sqrt(n), beyond this up to 65,536.
constexpr double kMaxRelativeError = 0x1p-8;

// Compares fewer queries where each costs more: 0.1 s of the CPU.
AttentionCaseOptions WithAffordableReference(AttentionCaseOptions options) {
  int context = 1;
  for (const AttentionCaseEntry& entry : options.entries) {
    context = std::max(context, entry.past + entry.rows);
  }
  options.compared = 100 + 200'000 / context;
  return options;
}

std::string Check(AttentionCase& attention, int launches = 1, bool overlap = false) {
  return attention.Check(
      [&](const AttentionArguments& arguments) {
        absl::Status status;
        for (int i = 0; i < launches && status.ok(); ++i) {
          status = PrefillAttentionWgmma(arguments, attention.max_rows(), attention.total_rows(),
                                         {.overlap_previous = overlap});
        }
        return status;
      },
      /*min_rows=*/2, /*max_rows=*/std::numeric_limits<int>::max());
}

TEST(PrefillWgmmaTest, OddChunksAfterOddContextsAreThoseOfTheReference) {
  for (const int rows : {2, 17, 63, 64, 65, 127, 128, 129, 200, 1000}) {
    for (const int past : {0, 1, 15, 16, 100, 1000, 5000}) {
      AttentionCase attention(WithAffordableReference(
          {.heads = 8, .kv_heads = 2, .entries = {{.rows = rows, .past = past}}}));
      EXPECT_EQ(Check(attention), "") << rows << " rows after " << past;
      EXPECT_LT(attention.relative_error(), kMaxRelativeError) << rows << " rows after " << past;
    }
  }
}

TEST(PrefillWgmmaTest, GroupsOfAnySizeAreThoseOfTheReference) {
  for (const int group : {1, 2, 3, 7, 8, 16, 128, 200}) {
    for (const int kv_heads : {1, 3}) {
      for (const AttentionCaseEntry entry : {AttentionCaseEntry{2, 0}, {77, 0}, {130, 300}}) {
        AttentionCase attention(WithAffordableReference(
            {.heads = group * kv_heads, .kv_heads = kv_heads, .entries = {entry}}));
        EXPECT_EQ(Check(attention), "")
            << kv_heads << " groups of " << group << ", " << entry.rows << " rows";
        EXPECT_LT(attention.relative_error(), kMaxRelativeError);
      }
    }
  }
}

TEST(PrefillWgmmaTest, MoreKvHeadsThanAreTakenAtATimeAreThoseOfTheReference) {
  for (const int kv_heads : {32, 33, 100}) {
    AttentionCase attention(WithAffordableReference(
        {.heads = kv_heads, .kv_heads = kv_heads, .entries = {{300, 200}, {129, 0}, {2, 40}}}));
    EXPECT_EQ(Check(attention), "") << kv_heads;
    EXPECT_LT(attention.relative_error(), kMaxRelativeError) << kv_heads;
  }
}

TEST(PrefillWgmmaTest, MixedBatchesAreThoseOfTheReferenceWithoutTheirDecodes) {
  AttentionCase few(WithAffordableReference(
      {.heads = 16,
       .kv_heads = 2,
       .entries = {{100, 0}, {1, 500}, {0, 0}, {17, 1000}, {2, 3}, {1, 0}, {300, 129}}}));
  EXPECT_EQ(Check(few), "");
  EXPECT_LT(few.relative_error(), kMaxRelativeError);

  AttentionCaseOptions options = {.heads = 4, .kv_heads = 4, .entries = {}};
  for (int i = 0; i < 100; ++i) {
    options.entries.push_back({.rows = i % 3 == 0 ? 1 : i * 7 % 40, .past = i * 37 % 300});
  }
  AttentionCase many(WithAffordableReference(options));
  EXPECT_EQ(Check(many), "");
  EXPECT_LT(many.relative_error(), kMaxRelativeError);

  AttentionCase none({.heads = 4, .kv_heads = 4, .entries = {{1, 10}, {0, 0}, {1, 100}}});
  EXPECT_EQ(Check(none), "");
}

TEST(PrefillWgmmaTest, SeveralTilesForEachMultiprocessorAreThoseOfTheReference) {
  // 8 KV heads x 1,000 x 16 / 128 queries = 1,000 tiles.
  AttentionCase attention(
      WithAffordableReference({.heads = 128, .kv_heads = 8, .entries = {{1000, 700}}}));
  EXPECT_EQ(Check(attention), "");
  EXPECT_LT(attention.relative_error(), kMaxRelativeError);
}

TEST(PrefillWgmmaTest, LargeScoresDoNotOverflow) {
  for (const float query_size : {0.0f, 10.0f, 100.0f, 1e4f}) {
    AttentionCase attention(WithAffordableReference(
        {.heads = 8, .kv_heads = 2, .entries = {{129, 0}, {300, 777}}, .query_size = query_size}));
    EXPECT_EQ(Check(attention), "") << query_size;
  }
}

TEST(PrefillWgmmaTest, OverlappingLaunchesGiveTheSame) {
  AttentionCase attention(WithAffordableReference(
      {.heads = 64, .kv_heads = 4, .entries = {{777, 1234}, {50, 60}, {1, 100}}}));
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Check(attention, /*launches=*/5, /*overlap=*/true), "");
}

TEST(PrefillWgmmaTest, OtherHeadSizesAreRefused) {
  AttentionArguments arguments;
  arguments.cache.kv_heads = 1;
  arguments.cache.head_dim = 96;
  arguments.heads = 1;
  EXPECT_EQ(PrefillAttentionWgmma(arguments, 2, 2, {}).code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace fabricast
