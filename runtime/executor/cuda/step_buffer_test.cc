#include "runtime/executor/cuda/step_buffer.h"

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;

struct Entry {
  RequestId request;
  int64_t first_token;
  std::vector<int32_t> tokens;
  bool samples = true;
  SamplingParams sampling = {};
};

Step StepOf(const std::vector<Entry>& entries) {
  Step step;
  for (const Entry& entry : entries) {
    step.micro_batch.entries.push_back({.request = entry.request,
                                        .first_token = entry.first_token,
                                        .tokens = static_cast<int64_t>(entry.tokens.size()),
                                        .decode = entry.tokens.size() == 1,
                                        .samples = entry.samples});
    step.tokens.insert(step.tokens.end(), entry.tokens.begin(), entry.tokens.end());
    step.sampling.push_back(entry.sampling);
  }
  return step;
}

// A buffer that was packed, read back.
class Packed {
 public:
  Packed(const Step& step, bool samples, const StageRequests& requests, int padded = 0)
      : shape_(ShapeOf(step, samples, requests, padded)), layout_(shape_) {
    // Each byte of an array is written, whatever was there.
    buffer_.assign(layout_.bytes, std::byte{0xEE});
    PackStep(step, samples, requests, shape_, absl::MakeSpan(buffer_));
  }

  const StepShape& shape() const { return shape_; }
  const StepLayout& layout() const { return layout_; }
  template <typename T = int32_t>
  std::vector<T> At(int64_t offset, int64_t count) const {
    std::vector<T> values(count);
    std::memcpy(values.data(), buffer_.data() + offset, count * sizeof(T));
    return values;
  }

 private:
  const StepShape shape_;
  const StepLayout layout_;
  std::vector<std::byte> buffer_;
};

StageRequests Requests() {
  return StageRequests({.vocabulary = 1000, .samples = true, .kv_blocks = 100, .max_running = 8});
}

TEST(StepBufferTest, AMixedStepIsLaidOutEntryByEntry) {
  StageRequests requests = Requests();
  // Request 5 has 17 tokens: blocks 0 and 1.
  ASSERT_TRUE(
      requests.Take(StepOf({{.request = 5, .first_token = 0, .tokens = std::vector<int32_t>(17)}}))
          .ok());
  const Step step =
      StepOf({{.request = 5, .first_token = 17, .tokens = {700}},
              {.request = 6,
               .first_token = 0,
               .tokens = {1, 2, 3},
               .samples = false,
               .sampling = {.repetition_penalty = 1.5}},
              {.request = 7,
               .first_token = 0,
               .tokens = {8, 9},
               .sampling = {.temperature = 0.5, .top_p = 0.75, .top_k = 40, .seed = 3}}});
  ASSERT_TRUE(requests.Take(step).ok());
  const Packed packed(step, true, requests);
  const StepShape& shape = packed.shape();
  EXPECT_EQ(shape.tokens, 6);
  EXPECT_EQ(shape.entries, 3);
  EXPECT_EQ(shape.sampled, 2);
  EXPECT_EQ(shape.singles, 1);
  EXPECT_EQ(shape.chunk_tokens, 5);
  EXPECT_EQ(shape.longest_chunk, 3);
  EXPECT_EQ(shape.table, 4);
  EXPECT_TRUE(shape.histories);
  const StepLayout& at = packed.layout();
  EXPECT_THAT(packed.At(at.first_bad_row, 1), ElementsAre(std::numeric_limits<int32_t>::max()));
  EXPECT_THAT(packed.At(at.tokens, 6), ElementsAre(700, 1, 2, 3, 8, 9));
  EXPECT_THAT(packed.At(at.positions, 6), ElementsAre(17, 0, 1, 2, 0, 1));
  // Position 17 is the second of block 1; requests 6 and 7 have blocks 2 and 3.
  EXPECT_THAT(packed.At(at.cache_slots, 6), ElementsAre(17, 32, 33, 34, 48, 49));
  EXPECT_THAT(packed.At(at.token_history, 6), ElementsAre(-1, 0, 0, 0, -1, -1));
  EXPECT_THAT(packed.At(at.first_row, 3), ElementsAre(0, 1, 4));
  EXPECT_THAT(packed.At(at.rows, 3), ElementsAre(1, 3, 2));
  EXPECT_THAT(packed.At(at.first_position, 3), ElementsAre(17, 0, 0));
  EXPECT_THAT(packed.At(at.table_start, 3), ElementsAre(0, 2, 3));
  EXPECT_THAT(packed.At(at.block_table, 4), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(packed.At(at.sampled_rows, 2), ElementsAre(0, 5));
  const std::vector<GpuSamplingRow> rows = packed.At<GpuSamplingRow>(at.sampling, 2);
  EXPECT_EQ(rows[0].temperature, 0);
  EXPECT_EQ(rows[0].position, 18);
  EXPECT_EQ(rows[0].skip, 0);
  EXPECT_EQ(rows[1].temperature, 0.5f);
  EXPECT_EQ(rows[1].top_p, 0.75f);
  EXPECT_EQ(rows[1].top_k, 40);
  EXPECT_EQ(rows[1].seed, 3);
  EXPECT_EQ(rows[1].position, 2);
  EXPECT_EQ(rows[1].history, -1);
}

TEST(StepBufferTest, AStageThatDoesNotSampleHasNoRowsOfIt) {
  StageRequests requests = Requests();
  const Step step = StepOf({{.request = 5, .first_token = 0, .tokens = {1}}});
  ASSERT_TRUE(requests.Take(step).ok());
  EXPECT_EQ(ShapeOf(step, false, requests).sampled, 0);
  EXPECT_EQ(ShapeOf(step, false, requests, 4).sampled, 0);
  EXPECT_EQ(ShapeOf(step, false, requests, 4).tokens, 4);
}

TEST(StepBufferTest, PaddingIsNeitherCachedNorSampled) {
  StageRequests requests = Requests();
  const Step step = StepOf({{.request = 5, .first_token = 0, .tokens = {4}},
                            {.request = 6, .first_token = 0, .tokens = {9}}});
  ASSERT_TRUE(requests.Take(step).ok());
  const Packed packed(step, true, requests, 4);
  const StepLayout& at = packed.layout();
  EXPECT_EQ(packed.shape().singles, 4);
  EXPECT_THAT(packed.At(at.tokens, 4), ElementsAre(4, 9, 0, 0));
  EXPECT_THAT(packed.At(at.cache_slots, 4), ElementsAre(0, 16, -1, -1));
  EXPECT_THAT(packed.At(at.token_history, 4), ElementsAre(-1, -1, -1, -1));
  EXPECT_THAT(packed.At(at.rows, 4), ElementsAre(1, 1, 0, 0));
  EXPECT_THAT(packed.At(at.sampled_rows, 4), ElementsAre(0, 1, 0, 0));
  EXPECT_THAT(packed.At<GpuSamplingRow>(at.sampling, 4)[1].skip, 0);
  EXPECT_THAT(packed.At<GpuSamplingRow>(at.sampling, 4)[2].skip, 1);
}

// What a graph was captured with says where arrays are in every other step that it is replayed for.
TEST(StepBufferTest, ArraysOfAGraphsStepLieWhereTheEmptyOnesDo) {
  StageRequests requests = Requests();
  const Step step = StepOf({{.request = 5, .first_token = 0, .tokens = std::vector<int32_t>(90)}});
  ASSERT_TRUE(requests.Take(step).ok());
  const Step decode = StepOf({{.request = 5, .first_token = 90, .tokens = {1}}});
  ASSERT_TRUE(requests.Take(decode).ok());
  const StepLayout real(ShapeOf(decode, true, requests, 8));
  const StepLayout empty(EmptyDecodeShape(8, true));
  EXPECT_EQ(real.sampled_tokens, empty.sampled_tokens);
  EXPECT_EQ(real.sampling, empty.sampling);
  EXPECT_EQ(real.tokens, empty.tokens);
  EXPECT_EQ(real.table_start, empty.table_start);
  EXPECT_EQ(real.sampled_rows, empty.sampled_rows);
  EXPECT_EQ(real.block_table, empty.block_table);
  EXPECT_GT(real.bytes, empty.bytes);
  EXPECT_LE(real.bytes, StepBufferBytes(8, 8, 100));
}

TEST(StepBufferTest, RowsWithLogProbabilitiesAreLeftToTheHost) {
  StageRequests requests = Requests();
  const Step step =
      StepOf({{.request = 5, .first_token = 0, .tokens = {4}, .sampling = {.logprobs = 0}}});
  ASSERT_TRUE(requests.Take(step).ok());
  const Packed packed(step, true, requests);
  EXPECT_EQ(packed.At<GpuSamplingRow>(packed.layout().sampling, 1)[0].skip, 1);
}

TEST(StepBufferTest, SmallTemperaturesAndLargeCountsKeepTheirMeaning) {
  StageRequests requests = Requests();
  const Step step = StepOf({{.request = 5,
                             .first_token = 0,
                             .tokens = {4},
                             .sampling = {.temperature = 1e-60, .top_k = int64_t{1} << 40}}});
  ASSERT_TRUE(requests.Take(step).ok());
  const Packed packed(step, true, requests);
  const GpuSamplingRow row = packed.At<GpuSamplingRow>(packed.layout().sampling, 1)[0];
  EXPECT_GT(row.temperature, 0);  // 0 would be greedy
  EXPECT_EQ(row.top_k, std::numeric_limits<int32_t>::max());
}

TEST(StepBufferTest, AStepIsOfDecodesIfAllEntriesAreOneTokenAndSample) {
  const Entry decode = {.request = 1, .first_token = 3, .tokens = {4}};
  EXPECT_TRUE(IsDecodeStep(StepOf({decode, decode}), true));
  Entry silent = decode;
  silent.samples = false;
  EXPECT_FALSE(IsDecodeStep(StepOf({decode, silent}), true));
  EXPECT_TRUE(IsDecodeStep(StepOf({decode, silent}), false));
  EXPECT_FALSE(
      IsDecodeStep(StepOf({decode, {.request = 2, .first_token = 0, .tokens = {1, 2}}}), false));
}

TEST(StepBufferTest, EmptyStepsComputeNothingOfAnyone) {
  const StepShape decodes = EmptyDecodeShape(3, true);
  std::vector<std::byte> buffer(StepLayout(decodes).bytes, std::byte{0xEE});
  PackEmpty(decodes, absl::MakeSpan(buffer));
  const StepLayout at(decodes);
  const auto ints = [&](int64_t offset) {
    return absl::Span<const int32_t>(reinterpret_cast<const int32_t*>(buffer.data() + offset), 3);
  };
  EXPECT_THAT(ints(at.rows), ElementsAre(0, 0, 0));
  EXPECT_THAT(ints(at.cache_slots), ElementsAre(-1, -1, -1));
  const StepShape chunk = EmptyChunkShape(40, 1);
  EXPECT_EQ(chunk.table, 3);
  EXPECT_EQ(chunk.longest_chunk, 40);
  EXPECT_EQ(chunk.singles, 0);
}

TEST(GraphBucketTest, IsTheNextThatHoldsThem) {
  EXPECT_EQ(GraphBucket(1, 256), 1);
  EXPECT_EQ(GraphBucket(3, 256), 4);
  EXPECT_EQ(GraphBucket(17, 256), 24);
  EXPECT_EQ(GraphBucket(256, 256), 256);
  EXPECT_EQ(GraphBucket(257, 256), 0);
  EXPECT_EQ(GraphBucket(20, 16), 0);
}

}  // namespace
}  // namespace fabricast
