#include "kernels/attention/attention_case.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/str_format.h"
#include "kernels/attention/attention_reference.h"
#include "kernels/attention/bf16.h"
#include "kernels/gpu/cuda_status.h"

namespace fabricast {
namespace {

constexpr uint16_t kNaN = 0x7fff;
constexpr uint16_t kUntouched = 0xffff;
// Elements before and after the output that must stay as they are.
constexpr size_t kGuard = 4096;

void CheckCuda(cudaError_t error, const char* what) {
  if (const absl::Status status = ToStatus(error, what); !status.ok()) {
    fprintf(stderr, "%s\n", status.ToString().c_str());
    exit(1);
  }
}

}  // namespace

void AttentionCase::DeviceFree::operator()(void* memory) const { cudaFree(memory); }

template <typename T>
T* AttentionCase::ToDevice(const std::vector<T>& values) {
  void* memory = nullptr;
  CheckCuda(cudaMalloc(&memory, std::max<size_t>(1, values.size()) * sizeof(T)), "cudaMalloc");
  memory_.emplace_back(memory);
  CheckCuda(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
            "cudaMemcpy to the device");
  return static_cast<T*>(memory);
}

AttentionCase::AttentionCase(const AttentionCaseOptions& options) : options_(options) {
  std::mt19937 random(options.seed);
  const size_t entries = options.entries.size();

  // The entries' rows in any order, with rows of nobody between them.
  std::vector<size_t> order(entries);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  first_row_.resize(entries);
  for (const size_t entry : order) {
    all_rows_ += static_cast<int>(random() % 2);
    first_row_[entry] = all_rows_;
    all_rows_ += options.entries[entry].rows;
  }
  ++all_rows_;

  int blocks = 0;
  for (const AttentionCaseEntry& entry : options.entries) {
    rows_.push_back(entry.rows);
    past_.push_back(entry.past);
    table_start_.push_back(blocks);
    blocks += (entry.past + entry.rows + kKvBlockTokens - 1) / kKvBlockTokens;
  }
  KvCacheView& cache = arguments_.cache;
  cache.blocks = blocks + 3;
  cache.kv_heads = options.kv_heads;
  cache.head_dim = options.head_dim;
  table_.resize(cache.blocks);
  std::iota(table_.begin(), table_.end(), 0);
  std::shuffle(table_.begin(), table_.end(), random);
  table_.resize(blocks);

  // Reading the same normal numbers from changing places is many times faster than drawing them.
  std::normal_distribution<float> normal;
  std::vector<uint16_t> numbers(1 << 16);
  for (uint16_t& number : numbers) number = ToBf16(normal(random));
  cache_.assign(cache.bytes() / 2, kNaN);
  for (size_t entry = 0; entry < entries; ++entry) {
    const int context = past_[entry] + rows_[entry];
    for (int token = 0; token < context; ++token) {
      const int64_t block = table_[table_start_[entry] + token / kKvBlockTokens];
      for (int part = 0; part < 2 * cache.kv_heads; ++part) {
        uint16_t* tile = &cache_[cache.tile(block, part / 2, part % 2)];
        const uint32_t at = random();
        for (int dim = 0; dim < cache.head_dim; ++dim) {
          tile[cache.in_tile(token % kKvBlockTokens, dim)] = numbers[(at + dim) % numbers.size()];
        }
      }
    }
  }

  // Of a packed q, k, v.
  const int64_t stride =
      (int64_t{options.heads} + 2 * options.kv_heads) * options.head_dim / 8 * 8 + 8;
  queries_.assign(all_rows_ * stride, kNaN);
  for (size_t entry = 0; entry < entries; ++entry) {
    for (int row = 0; row < rows_[entry]; ++row) {
      uint16_t* to = &queries_[(first_row_[entry] + row) * stride];
      for (int i = 0; i < options.heads * options.head_dim; ++i) {
        to[i] = ToBf16(options.query_size * FromBf16(numbers[random() % numbers.size()]));
      }
    }
  }

  AttentionBatch& batch = arguments_.batch;
  batch.entries = static_cast<int>(entries);
  batch.first_row = ToDevice(first_row_);
  batch.rows = ToDevice(rows_);
  batch.first_position = ToDevice(past_);
  batch.block_table = ToDevice(table_);
  batch.table_start = ToDevice(table_start_);
  cache.data = ToDevice(cache_);
  arguments_.queries = ToDevice(queries_);
  arguments_.query_stride = stride;
  arguments_.heads = options.heads;
  arguments_.scale = 1 / std::sqrt(static_cast<float>(options.head_dim));
  arguments_.output = ToDevice(std::vector<uint16_t>(
                          2 * kGuard + size_t(all_rows_) * options.heads * options.head_dim)) +
                      kGuard;
}

int AttentionCase::max_rows() const {
  return rows_.empty() ? 0 : *std::max_element(rows_.begin(), rows_.end());
}

int AttentionCase::total_rows() const { return std::accumulate(rows_.begin(), rows_.end(), 0); }

std::vector<float> AttentionCase::Gather(size_t entry, int kv_head, int value, int tokens) const {
  const KvCacheView& cache = arguments_.cache;
  std::vector<float> gathered;
  for (int token = 0; token < tokens; ++token) {
    const int64_t block = table_[table_start_[entry] + token / kKvBlockTokens];
    const uint16_t* tile = &cache_[cache.tile(block, kv_head, value)];
    for (int dim = 0; dim < cache.head_dim; ++dim) {
      gathered.push_back(FromBf16(tile[cache.in_tile(token % kKvBlockTokens, dim)]));
    }
  }
  return gathered;
}

std::string AttentionCase::Check(const Launch& launch, int min_rows, int max_rows) {
  const size_t elements = 2 * kGuard + size_t(all_rows_) * options_.heads * options_.head_dim;
  uint16_t* const on_device = static_cast<uint16_t*>(arguments_.output) - kGuard;
  std::vector<uint16_t> outputs[2];
  for (std::vector<uint16_t>& output : outputs) {
    CheckCuda(cudaMemset(on_device, 0xff, elements * sizeof(uint16_t)), "cudaMemset");
    if (const absl::Status status = launch(arguments_); !status.ok()) return status.ToString();
    if (const absl::Status status = ToStatus(cudaDeviceSynchronize(), "running the kernel");
        !status.ok()) {
      return status.ToString();
    }
    output.resize(elements);
    CheckCuda(
        cudaMemcpy(output.data(), on_device, elements * sizeof(uint16_t), cudaMemcpyDeviceToHost),
        "cudaMemcpy to the host");
  }
  for (size_t i = 0; i < elements; ++i) {
    if (outputs[0][i] == outputs[1][i]) continue;
    return absl::StrFormat("element %d was %04x, and %04x at the second run",
                           static_cast<int64_t>(i) - static_cast<int64_t>(kGuard), outputs[0][i],
                           outputs[1][i]);
  }
  return Compare(outputs[0], min_rows, max_rows);
}

std::string AttentionCase::Compare(const std::vector<uint16_t>& output, int min_rows,
                                   int max_rows) {
  const int heads = options_.heads, head_dim = options_.head_dim, group = heads / options_.kv_heads;
  struct Query {
    size_t entry;
    int row, head;
  };
  std::vector<Query> queries;
  std::vector<bool> written(output.size(), false);
  for (size_t entry = 0; entry < rows_.size(); ++entry) {
    if (rows_[entry] < min_rows || rows_[entry] > max_rows) continue;
    for (int row = 0; row < rows_[entry]; ++row) {
      const size_t begin = kGuard + size_t(first_row_[entry] + row) * heads * head_dim;
      std::fill_n(written.begin() + begin, heads * head_dim, true);
      for (int head = 0; head < heads; ++head) queries.push_back({entry, row, head});
    }
  }
  for (size_t i = 0; i < output.size(); ++i) {
    const bool is_untouched = output[i] == kUntouched;
    if (is_untouched == !written[i]) continue;
    const int64_t at = static_cast<int64_t>(i) - static_cast<int64_t>(kGuard);
    return absl::StrFormat("row %d head %d dim %d of %d rows %s", at / (heads * head_dim),
                           at / head_dim % heads, at % head_dim, all_rows_,
                           written[i] ? "was not written" : "was written to");
  }

  std::mt19937 random(options_.seed + 1);
  std::shuffle(queries.begin(), queries.end(), random);
  if (queries.size() > static_cast<size_t>(options_.compared)) queries.resize(options_.compared);
  std::map<std::pair<size_t, int>, std::pair<std::vector<float>, std::vector<float>>> gathered;
  double square_error = 0, square = 0;
  std::string wrong;
  int wrong_count = 0;
  for (const Query& query : queries) {
    const int kv_head = query.head / group;
    auto& [keys, values] = gathered[{query.entry, kv_head}];
    if (keys.empty()) {
      const int tokens = past_[query.entry] + rows_[query.entry];
      keys = Gather(query.entry, kv_head, 0, tokens);
      values = Gather(query.entry, kv_head, 1, tokens);
    }
    std::vector<float> elements;
    const int64_t row = first_row_[query.entry] + query.row;
    for (int dim = 0; dim < head_dim; ++dim) {
      elements.push_back(
          FromBf16(queries_[row * arguments_.query_stride + query.head * head_dim + dim]));
    }
    const size_t count = size_t(past_[query.entry] + query.row + 1) * head_dim;
    const AttentionReferenceOutput reference =
        AttentionReference(elements, absl::MakeSpan(keys).first(count),
                           absl::MakeSpan(values).first(count), arguments_.scale);
    // A score is a sum in FP32 of head_dim / 16 steps at most 2^-22 off each, and a few roundings
    // more. Twice, as a weight is relative to the maximum. Weights and outputs are rounded to BF16
    // by at most 2^-9 of their size; 2^-12 is for 2^x and the sums in FP32.
    const double of_score = reference.max_score * (head_dim / 16 + 4) * 0x1p-22;
    const double tolerance = 0x1p-7 + 0x1p-12 + std::expm1(2 * of_score);
    for (int dim = 0; dim < head_dim; ++dim) {
      const double expected = reference.output[dim];
      const double actual = FromBf16(output[kGuard + (row * heads + query.head) * head_dim + dim]);
      square_error += (actual - expected) * (actual - expected);
      square += expected * expected;
      if (std::abs(actual - expected) <= tolerance * reference.absolute[dim]) continue;
      if (wrong_count++ == 0) {
        wrong = absl::StrFormat(
            "entry %d (%d rows after %d) row %d head %d dim %d: %g, expected %g +- %g", query.entry,
            rows_[query.entry], past_[query.entry], query.row, query.head, dim, actual, expected,
            tolerance * reference.absolute[dim]);
      }
    }
  }
  relative_error_ = square == 0 ? 0 : std::sqrt(square_error / square);
  if (wrong_count == 0) return "";
  return absl::StrFormat("%s (and %d more of %d; relative error %g)", wrong, wrong_count - 1,
                         queries.size() * head_dim, relative_error_);
}

}  // namespace fabricast
