// Needs a GPU: tools/gpu_tests runs it.

#include "kernels/attention/attention.h"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "gtest/gtest.h"
#include "kernels/attention/attention_case.h"
#include "kernels/attention/decode.h"
#include "kernels/attention/prefill.h"

namespace fabricast {
namespace {

constexpr int kMany = std::numeric_limits<int>::max();

// For all tests of the program: it must be zero again after every launch.
class Workspace {
 public:
  Workspace() {
    const int64_t bytes = DecodeAttentionWorkspaceBytes(kMaxAttentionEntries, 128, 128);
    EXPECT_EQ(cudaMalloc(&memory_, bytes), cudaSuccess);
    EXPECT_EQ(cudaMemset(memory_, 0, bytes), cudaSuccess);
  }
  void* get() const { return memory_; }

 private:
  void* memory_ = nullptr;
};

void* SharedWorkspace() {
  static const Workspace workspace;
  return workspace.get();
}

std::string CheckDecode(AttentionCase& attention, bool overlap = false) {
  return attention.Check(
      [&](AttentionArguments arguments) {
        arguments.workspace = SharedWorkspace();
        return DecodeAttention(arguments, {.overlap_previous = overlap});
      },
      1, 1);
}

// As on a GPU with little shared memory.
std::string CheckDecodeOfFourWarps(AttentionCase& attention) {
  return attention.Check(
      [&](AttentionArguments arguments) {
        arguments.workspace = SharedWorkspace();
        return DecodeAttentionMma(arguments, /*warps=*/4, {});
      },
      1, 1);
}

std::string CheckPrefill(AttentionCase& attention) {
  return attention.Check(
      [&](const AttentionArguments& arguments) {
        return PrefillAttention(arguments, attention.max_rows(), attention.total_rows(), {});
      },
      2, kMany);
}

std::string CheckPrefillMma(AttentionCase& attention) {
  return attention.Check(
      [&](const AttentionArguments& arguments) {
        return PrefillAttentionMma(arguments, attention.max_rows(), attention.total_rows(), {});
      },
      2, kMany);
}

std::vector<AttentionCaseEntry> Decodes(const std::vector<int>& contexts) {
  std::vector<AttentionCaseEntry> entries;
  for (const int context : contexts) entries.push_back({.rows = 1, .past = context - 1});
  return entries;
}

struct Shape {
  int heads, kv_heads, head_dim;
};

std::vector<Shape> Shapes() {
  std::vector<Shape> shapes;
  for (const int head_dim : {64, 128}) {
    for (const int group : {1, 2, 3, 4, 8, 16, 20}) shapes.push_back({2 * group, 2, head_dim});
  }
  for (const int head_dim : {2, 16, 32, 80, 96, 256}) shapes.push_back({6, 2, head_dim});
  shapes.push_back({40, 1, 128});
  shapes.push_back({7, 7, 128});
  return shapes;
}

class AttentionShapeTest : public testing::TestWithParam<Shape> {
 protected:
  AttentionCaseOptions Options() const {
    return {.heads = GetParam().heads,
            .kv_heads = GetParam().kv_heads,
            .head_dim = GetParam().head_dim,
            .entries = {}};
  }
};

TEST_P(AttentionShapeTest, DecodeOfOddContextsIsThatOfTheReference) {
  AttentionCaseOptions options = Options();
  options.entries = Decodes({1, 15, 16, 17, 31, 32, 33, 128, 257, 1000});
  AttentionCase attention(options);
  EXPECT_EQ(CheckDecode(attention), "");
  if (options.head_dim == 64 || options.head_dim == 128) {
    EXPECT_EQ(CheckDecodeOfFourWarps(attention), "") << "four warps";
  }
}

TEST_P(AttentionShapeTest, DecodeOfOneRequestIsThatOfTheReference) {
  for (const int context : {1, 16, 130, 2047}) {
    AttentionCaseOptions options = Options();
    options.entries = Decodes({context});
    AttentionCase attention(options);
    EXPECT_EQ(CheckDecode(attention), "") << "context " << context;
  }
}

TEST_P(AttentionShapeTest, PrefillOfOddChunksIsThatOfTheReference) {
  AttentionCaseOptions options = Options();
  options.compared = 1000;
  options.entries = {{2, 0},  {3, 1},    {15, 0}, {16, 16},  {17, 15},
                     {64, 0}, {65, 127}, {2, 63}, {130, 50}, {8, 777}};
  AttentionCase attention(options);
  EXPECT_EQ(CheckPrefill(attention), "");
  if (options.head_dim == 64 || options.head_dim == 128) {
    EXPECT_EQ(CheckPrefillMma(attention), "") << "portable kernel";
  }
}

TEST_P(AttentionShapeTest, MixedBatchIsComputedByTheTwoTogetherAndEachLeavesTheOthersOut) {
  AttentionCaseOptions options = Options();
  options.compared = 500;
  options.entries = {{1, 0}, {0, 0}, {40, 100}, {1, 555}, {0, 37}, {2, 14}, {1, 15}, {0, 0}};
  AttentionCase attention(options);
  EXPECT_EQ(CheckDecode(attention), "");
  EXPECT_EQ(CheckPrefill(attention), "");
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionShapeTest, testing::ValuesIn(Shapes()),
                         [](const testing::TestParamInfo<Shape>& info) {
                           return absl::StrFormat("%dHeads%dKvHeadsOf%d", info.param.heads,
                                                  info.param.kv_heads, info.param.head_dim);
                         });

TEST(DecodeAttentionTest, LongContextsOf405BAreThoseOfTheReference) {
  for (const int context : {8191, 8192}) {
    AttentionCase attention({.heads = 128,
                             .kv_heads = 8,
                             .head_dim = 128,
                             .entries = Decodes({context}),
                             .compared = 128});
    EXPECT_EQ(CheckDecode(attention), "") << "context " << context;
  }
}

TEST(DecodeAttentionTest, BatchesOfEverySizeAndOfVeryDifferentLengthsAreThoseOfTheReference) {
  for (const int entries : {2, 3, 5, 16, 33, 64}) {
    std::vector<int> contexts;
    for (int i = 0; i < entries; ++i) contexts.push_back(i % 7 == 3 ? 3000 + i : 1 + i * i % 97);
    AttentionCase attention({.heads = 32,
                             .kv_heads = 2,
                             .head_dim = 128,
                             .entries = Decodes(contexts),
                             .seed = uint32_t(entries),
                             .compared = 500});
    EXPECT_EQ(CheckDecode(attention), "") << entries << " entries";
    EXPECT_EQ(CheckDecodeOfFourWarps(attention), "") << entries << " entries, four warps";
  }
}

TEST(DecodeAttentionTest, AsManyEntriesAsThereMayBeAndOneMoreIsRefused) {
  std::vector<AttentionCaseEntry> entries(kMaxAttentionEntries);
  for (size_t i = 0; i < entries.size(); ++i) {
    entries[i] = {.rows = i % 5 == 0 ? 0 : 1, .past = static_cast<int>(i * 7 % 61)};
  }
  AttentionCase attention({.heads = 8, .kv_heads = 1, .entries = entries});
  EXPECT_EQ(CheckDecode(attention), "");
  AttentionArguments arguments = attention.arguments();
  arguments.workspace = SharedWorkspace();
  arguments.batch.entries = kMaxAttentionEntries + 1;
  EXPECT_EQ(DecodeAttention(arguments, {}).code(), absl::StatusCode::kInvalidArgument);
}

TEST(DecodeAttentionTest, NoEntryAndEntriesWithoutRowsTouchNothing) {
  for (const std::vector<AttentionCaseEntry>& entries :
       {std::vector<AttentionCaseEntry>{}, {{0, 0}}, {{0, 100}, {0, 0}, {0, 33}}}) {
    AttentionCase attention({.heads = 8, .kv_heads = 2, .entries = entries});
    EXPECT_EQ(CheckDecode(attention), "");
    EXPECT_EQ(CheckPrefill(attention), "");
  }
}

// Scores of some hundreds: one token has nearly all of the weight, and exp without the maximum
// taken out would overflow.
TEST(DecodeAttentionTest, LargeScoresDoNotOverflow) {
  for (const int head_dim : {32, 64, 128}) {
    AttentionCase attention({.heads = 16,
                             .kv_heads = 2,
                             .head_dim = head_dim,
                             .entries = Decodes({1, 100, 1500}),
                             .query_size = 100});
    EXPECT_EQ(CheckDecode(attention), "") << head_dim;
  }
}

TEST(DecodeAttentionTest, OverlappingLaunchesGiveTheSame) {
  AttentionCase attention(
      {.heads = 16, .kv_heads = 2, .entries = Decodes({1, 100, 1500}), .compared = 200});
  for (int i = 0; i < 20; ++i) EXPECT_EQ(CheckDecode(attention, /*overlap=*/true), "");
}

// The launch of a captured batch, replayed for another one of as many entries.
TEST(DecodeAttentionTest, GraphIsReplayedForAnotherBatch) {
  AttentionCase captured({.heads = 16, .kv_heads = 2, .entries = Decodes({5, 600, 70})});
  AttentionCase other({.heads = 16, .kv_heads = 2, .entries = Decodes({4000, 1, 16}), .seed = 2});
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  const AttentionBatch& batch = captured.arguments().batch;
  const AttentionBatch& other_batch = other.arguments().batch;
  int32_t* arrays = nullptr;  // first_row, rows, first_position, table_start
  ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&arrays), 12 * sizeof(int32_t)), cudaSuccess);
  const auto set = [&](const AttentionBatch& to) {
    const int32_t* from[] = {to.first_row, to.rows, to.first_position, to.table_start};
    for (int i = 0; i < 4; ++i) {
      ASSERT_EQ(cudaMemcpy(arrays + 3 * i, from[i], 12, cudaMemcpyDeviceToDevice), cudaSuccess);
    }
  };
  set(batch);
  // Everything but those arrays is the other batch's, from the capture on.
  AttentionArguments arguments = other.arguments();
  arguments.batch.first_row = arrays;
  arguments.batch.rows = arrays + 3;
  arguments.batch.first_position = arrays + 6;
  arguments.batch.table_start = arrays + 9;
  arguments.workspace = SharedWorkspace();
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(DecodeAttention(arguments, {.stream = stream}), absl::OkStatus());
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&replay, graph, 0), cudaSuccess);
  set(other_batch);
  EXPECT_EQ(other.Check(
                [&](const AttentionArguments&) {
                  EXPECT_EQ(cudaGraphLaunch(replay, stream), cudaSuccess);
                  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
                  return absl::OkStatus();
                },
                1, 1),
            "");
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaFree(arrays);
  cudaStreamDestroy(stream);
}

TEST(PrefillAttentionTest, LongChunksOf405BAreThoseOfTheReference) {
  AttentionCase attention({.heads = 128,
                           .kv_heads = 8,
                           .entries = {{1000, 0}, {333, 1111}, {1, 50}, {129, 4096}},
                           .compared = 300});
  EXPECT_EQ(CheckPrefill(attention), "");
  EXPECT_EQ(CheckPrefillMma(attention), "");
}

TEST(PrefillAttentionTest, LargeScoresDoNotOverflow) {
  for (const int head_dim : {32, 64, 128}) {
    AttentionCase attention({.heads = 16,
                             .kv_heads = 2,
                             .head_dim = head_dim,
                             .entries = {{100, 0}, {65, 1000}},
                             .query_size = 100,
                             .compared = 500});
    EXPECT_EQ(CheckPrefill(attention), "") << head_dim;
  }
}

TEST(PrefillAttentionTest, ManyShortChunksAreThoseOfTheReference) {
  std::vector<AttentionCaseEntry> entries;
  for (int i = 0; i < 200; ++i) entries.push_back({.rows = i % 6, .past = i * 13 % 200});
  AttentionCase attention({.heads = 16, .kv_heads = 2, .entries = entries});
  EXPECT_EQ(CheckPrefill(attention), "");
  EXPECT_EQ(CheckPrefillMma(attention), "");
  EXPECT_EQ(CheckDecode(attention), "");
}

TEST(AttentionTest, ArgumentsThatDoNotFitAreRefused) {
  AttentionCase attention({.heads = 8, .kv_heads = 2, .entries = {{1, 5}, {2, 5}}});
  AttentionArguments good = attention.arguments();
  good.workspace = SharedWorkspace();
  const auto refuses = [](const AttentionArguments& arguments) {
    return DecodeAttention(arguments, {}).code() == absl::StatusCode::kInvalidArgument &&
           PrefillAttention(arguments, 2, 3, {}).code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refuses(good));
  AttentionArguments heads = good, head_dim = good, stride = good, scale = good;
  heads.cache.kv_heads = 3;
  EXPECT_TRUE(refuses(heads));
  head_dim.cache.head_dim = 258;
  EXPECT_TRUE(refuses(head_dim));
  stride.query_stride += 4;
  EXPECT_TRUE(refuses(stride));
  scale.scale = 0;
  EXPECT_TRUE(refuses(scale));
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
}  // namespace fabricast
