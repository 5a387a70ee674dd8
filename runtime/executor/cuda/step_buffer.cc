#include "runtime/executor/cuda/step_buffer.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/attention/kv_cache.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

constexpr int64_t kAlignment = 16;

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

template <typename T>
T* At(absl::Span<std::byte> buffer, int64_t offset) {
  return reinterpret_cast<T*>(buffer.data() + offset);
}

GpuSamplingRow SamplingRow(const SamplingParams& params, int64_t position, int32_t history) {
  GpuSamplingRow row;
  // A small temperature must not become 0, which means greedy.
  row.temperature = params.temperature == 0 ? 0
                                            : std::max(static_cast<float>(params.temperature),
                                                       std::numeric_limits<float>::min());
  row.top_p = static_cast<float>(params.top_p);
  row.top_k =
      static_cast<int32_t>(std::min<int64_t>(params.top_k, std::numeric_limits<int32_t>::max()));
  row.repetition_penalty = static_cast<float>(params.repetition_penalty);
  row.seed = params.seed;
  row.position = position;
  row.history = params.repetition_penalty == 1 ? -1 : history;
  // Those come from the host, which reads the row's logits.
  row.skip = params.logprobs >= 0 ? 1 : 0;
  return row;
}

}  // namespace

StepLayout::StepLayout(const StepShape& shape) {
  const auto take = [this](int64_t count, int64_t element_bytes) {
    const int64_t at = bytes;
    bytes += Aligned(count * element_bytes);
    return at;
  };
  first_bad_row = take(1, sizeof(int32_t));
  sampled_tokens = take(shape.sampled, sizeof(GpuSampledToken));
  found_bytes = bytes;
  sampling = take(shape.sampled, sizeof(GpuSamplingRow));
  tokens = take(shape.tokens, sizeof(int32_t));
  positions = take(shape.tokens, sizeof(int32_t));
  cache_slots = take(shape.tokens, sizeof(int32_t));
  token_history = take(shape.tokens, sizeof(int32_t));
  first_row = take(shape.entries, sizeof(int32_t));
  rows = take(shape.entries, sizeof(int32_t));
  first_position = take(shape.entries, sizeof(int32_t));
  table_start = take(shape.entries, sizeof(int32_t));
  sampled_rows = take(shape.sampled, sizeof(int32_t));
  block_table = take(shape.table, sizeof(int32_t));
}

int64_t StepBufferBytes(int64_t max_tokens, int64_t max_entries, int64_t max_table) {
  StepShape shape;
  shape.tokens = static_cast<int>(max_tokens);
  shape.entries = static_cast<int>(max_entries);
  shape.sampled = static_cast<int>(max_entries);
  shape.table = max_table;
  return StepLayout(shape).bytes;
}

bool IsDecodeStep(const Step& step, bool samples) {
  return std::all_of(
      step.micro_batch.entries.begin(), step.micro_batch.entries.end(),
      [&](const BatchEntry& entry) { return entry.tokens == 1 && (!samples || entry.samples); });
}

StepShape ShapeOf(const Step& step, bool samples, const StageRequests& requests, int padded) {
  StepShape shape;
  for (const BatchEntry& entry : step.micro_batch.entries) {
    shape.tokens += static_cast<int>(entry.tokens);
    ++shape.entries;
    if (samples && entry.samples) ++shape.sampled;
    if (entry.tokens == 1) {
      ++shape.singles;
    } else {
      shape.chunk_tokens += static_cast<int>(entry.tokens);
      shape.longest_chunk = std::max(shape.longest_chunk, static_cast<int>(entry.tokens));
    }
    shape.histories = shape.histories || requests.history_index(entry.request) >= 0;
    shape.table += static_cast<int64_t>(requests.blocks(entry.request).size());
  }
  if (padded == 0) return shape;
  FABRICAST_CHECK(IsDecodeStep(step, samples) && padded >= shape.entries)
      << "padded=" << padded << " entries=" << shape.entries << " tokens=" << shape.tokens;
  shape.tokens = shape.entries = shape.singles = padded;
  if (samples) shape.sampled = padded;
  return shape;
}

void PackEmpty(const StepShape& shape, absl::Span<std::byte> buffer) {
  const StepLayout layout(shape);
  FABRICAST_CHECK(layout.bytes <= static_cast<int64_t>(buffer.size()))
      << "bytes=" << layout.bytes << " buffer=" << buffer.size();
  std::memset(buffer.data(), 0, layout.bytes);
  *At<int32_t>(buffer, layout.first_bad_row) = std::numeric_limits<int32_t>::max();
  const GpuSamplingRow skipped = {.skip = 1};
  std::fill_n(At<GpuSamplingRow>(buffer, layout.sampling), shape.sampled, skipped);
  std::fill_n(At<int32_t>(buffer, layout.cache_slots), shape.tokens, -1);
  std::fill_n(At<int32_t>(buffer, layout.token_history), shape.tokens, -1);
  if (shape.chunk_tokens == 0) return;
  // One chunk; its block table is zeros.
  *At<int32_t>(buffer, layout.rows) = shape.chunk_tokens;
  for (int i = 0; i < shape.tokens; ++i) At<int32_t>(buffer, layout.positions)[i] = i;
}

void PackStep(const Step& step, bool samples, const StageRequests& requests, const StepShape& shape,
              absl::Span<std::byte> buffer) {
  const StepLayout layout(shape);
  FABRICAST_CHECK(layout.bytes <= static_cast<int64_t>(buffer.size()))
      << "bytes=" << layout.bytes << " buffer=" << buffer.size();
  *At<int32_t>(buffer, layout.first_bad_row) = std::numeric_limits<int32_t>::max();
  GpuSamplingRow* sampling = At<GpuSamplingRow>(buffer, layout.sampling);
  int32_t* sampled_rows = At<int32_t>(buffer, layout.sampled_rows);
  int32_t* tokens = At<int32_t>(buffer, layout.tokens);
  int32_t* positions = At<int32_t>(buffer, layout.positions);
  int32_t* slots = At<int32_t>(buffer, layout.cache_slots);
  int32_t* token_history = At<int32_t>(buffer, layout.token_history);
  int32_t* first_row = At<int32_t>(buffer, layout.first_row);
  int32_t* rows = At<int32_t>(buffer, layout.rows);
  int32_t* first_position = At<int32_t>(buffer, layout.first_position);
  int32_t* table_start = At<int32_t>(buffer, layout.table_start);
  int32_t* table = At<int32_t>(buffer, layout.block_table);

  int row = 0;
  int sampled = 0;
  int32_t in_table = 0;
  const int entries = static_cast<int>(step.micro_batch.entries.size());
  for (int e = 0; e < entries; ++e) {
    const BatchEntry& entry = step.micro_batch.entries[e];
    const absl::Span<const int32_t> blocks = requests.blocks(entry.request);
    const int32_t history = requests.history_index(entry.request);
    first_row[e] = row;
    rows[e] = static_cast<int32_t>(entry.tokens);
    first_position[e] = static_cast<int32_t>(entry.first_token);
    table_start[e] = in_table;
    std::copy(blocks.begin(), blocks.end(), table + in_table);
    in_table += static_cast<int32_t>(blocks.size());
    for (int64_t i = 0; i < entry.tokens; ++i, ++row) {
      const int64_t position = entry.first_token + i;
      tokens[row] = step.tokens[row];
      positions[row] = static_cast<int32_t>(position);
      slots[row] = static_cast<int32_t>(blocks[position / kKvBlockTokens] * kKvBlockTokens +
                                        position % kKvBlockTokens);
      token_history[row] = history;
    }
    if (!samples || !entry.samples) continue;
    sampled_rows[sampled] = row - 1;
    sampling[sampled++] = SamplingRow(step.sampling[e], entry.first_token + entry.tokens, history);
  }
  // Padding.
  for (; row < shape.tokens; ++row) {
    tokens[row] = positions[row] = 0;
    slots[row] = token_history[row] = -1;
  }
  for (int e = entries; e < shape.entries; ++e) {
    first_row[e] = rows[e] = first_position[e] = table_start[e] = 0;
  }
  for (; sampled < shape.sampled; ++sampled) {
    sampled_rows[sampled] = 0;
    sampling[sampled] = {.skip = 1};
  }
}

StepShape EmptyDecodeShape(int entries, bool samples) {
  StepShape shape;
  shape.tokens = shape.entries = shape.singles = entries;
  shape.sampled = samples ? entries : 0;
  return shape;
}

StepShape EmptyChunkShape(int tokens, int sampled) {
  StepShape shape;
  shape.tokens = shape.chunk_tokens = shape.longest_chunk = tokens;
  shape.entries = 1;
  shape.sampled = sampled;
  shape.table = (tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  return shape;
}

absl::Span<const int> GraphBuckets() {
  // Kernels for few tokens read the weights once whatever the number, so that a few too many cost
  // little; from 64 on by 32.
  static constexpr int kBuckets[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256};
  return kBuckets;
}

int GraphBucket(int entries, int largest) {
  for (const int bucket : GraphBuckets()) {
    if (bucket > largest) return 0;
    if (bucket >= entries) return bucket;
  }
  return 0;
}

}  // namespace fabricast
