#include "kernels/attention/attention_workload.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <random>
#include <utility>

#include "absl/types/span.h"
#include "kernels/attention/attention_reference.h"
#include "kernels/attention/bf16.h"
#include "kernels/gpu/cuda_status.h"

namespace fabricast {
namespace {

template <typename T>
absl::Status Assign(DeviceArray<T>& to, absl::StatusOr<DeviceArray<T>> from) {
  if (!from.ok()) return from.status();
  to = *std::move(from);
  return absl::OkStatus();
}

// Fills it with `numbers`, over and over.
absl::Status FillWith(const DeviceArray<uint16_t>& array, const std::vector<uint16_t>& numbers) {
  size_t filled = std::min<size_t>(numbers.size(), array.size());
  FABRICAST_RETURN_IF_CUDA_FAILS(
      cudaMemcpy(array.get(), numbers.data(), filled * 2, cudaMemcpyHostToDevice));
  while (filled < static_cast<size_t>(array.size())) {
    const size_t count = std::min<size_t>(filled, array.size() - filled);
    FABRICAST_RETURN_IF_CUDA_FAILS(
        cudaMemcpy(array.get() + filled, array.get(), count * 2, cudaMemcpyDeviceToDevice));
    filled += count;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<AttentionWorkload>> AttentionWorkload::Create(
    const AttentionWorkloadOptions& options) {
  auto workload = std::unique_ptr<AttentionWorkload>(new AttentionWorkload(options));
  if (absl::Status status = workload->Initialize(); !status.ok()) return status;
  return workload;
}

absl::Status AttentionWorkload::Initialize() {
  const int context = options_.past + options_.rows;
  const int64_t blocks_each = (context + kKvBlockTokens - 1) / kKvBlockTokens;
  const int64_t blocks = blocks_each * options_.requests;
  cache_.kv_heads = options_.kv_heads;
  cache_.head_dim = options_.head_dim;
  rotations_ = std::max<int64_t>(1, options_.pool_bytes / (blocks * cache_.block_elements() * 2));
  cache_.blocks = rotations_ * blocks;

  // A length that is no multiple of a tile's, so that tiles differ.
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> numbers((1 << 20) + 1);
  for (uint16_t& number : numbers) number = ToBf16(normal(random));
  table_.resize(cache_.blocks);
  std::iota(table_.begin(), table_.end(), 0);
  std::shuffle(table_.begin(), table_.end(), random);

  std::vector<int32_t> first_row, rows, past, table_start;
  for (int request = 0; request < options_.requests; ++request) {
    first_row.push_back(request * options_.rows);
    rows.push_back(options_.rows);
    past.push_back(options_.past);
  }
  for (int64_t i = 0; i < rotations_ * options_.requests; ++i) {
    table_start.push_back(static_cast<int32_t>(i * blocks_each));
  }
  const int64_t elements =
      int64_t{options_.requests} * options_.rows * options_.heads * options_.head_dim;

  const auto check = [](std::initializer_list<absl::Status> statuses) {
    for (const absl::Status& status : statuses) {
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  };
  if (absl::Status status = check({
          Assign(pool_, DeviceArray<uint16_t>::Allocate(cache_.bytes() / 2, "the KV cache")),
          Assign(queries_, DeviceArray<uint16_t>::Allocate(elements, "the queries")),
          Assign(output_, DeviceArray<uint16_t>::Allocate(elements, "the output")),
          Assign(workspace_, DeviceArray<uint8_t>::Allocate(DecodeAttentionWorkspaceBytes(
                                 options_.requests, options_.heads, options_.head_dim))),
          Assign(first_row_, DeviceArray<int32_t>::CopyOf(first_row)),
          Assign(rows_, DeviceArray<int32_t>::CopyOf(rows)),
          Assign(past_, DeviceArray<int32_t>::CopyOf(past)),
          Assign(table_on_device_, DeviceArray<int32_t>::CopyOf(table_)),
          Assign(table_start_, DeviceArray<int32_t>::CopyOf(table_start)),
      });
      !status.ok()) {
    return status;
  }
  cache_.data = pool_.get();
  if (absl::Status status = FillWith(pool_, numbers); !status.ok()) return status;
  std::reverse(numbers.begin(), numbers.end());  // Or some query would be a key.
  return check({FillWith(queries_, numbers), workspace_.FillBytes(0), output_.FillBytes(0xff)});
}

AttentionArguments AttentionWorkload::arguments(int64_t index) const {
  AttentionArguments arguments;
  arguments.batch.entries = options_.requests;
  arguments.batch.first_row = first_row_.get();
  arguments.batch.rows = rows_.get();
  arguments.batch.first_position = past_.get();
  arguments.batch.block_table = table_on_device_.get();
  arguments.batch.table_start = table_start_.get() + index % rotations_ * options_.requests;
  arguments.cache = cache_;
  arguments.queries = queries_.get();
  arguments.query_stride = int64_t{options_.heads} * options_.head_dim;
  arguments.output = output_.get();
  arguments.heads = options_.heads;
  arguments.scale = 1 / std::sqrt(static_cast<float>(options_.head_dim));
  arguments.workspace = workspace_.get();
  return arguments;
}

double AttentionWorkload::bytes() const {
  const double context = options_.past + options_.rows;
  return 2.0 * options_.head_dim * options_.requests *
         (2 * context * options_.kv_heads + 2.0 * options_.rows * options_.heads);
}

double AttentionWorkload::operations() const {
  // A row sees the past and the rows up to itself.
  const double seen = options_.rows * (options_.past + (options_.rows + 1) / 2.0);
  return 4.0 * seen * options_.requests * options_.heads * options_.head_dim;
}

absl::StatusOr<std::vector<float>> AttentionWorkload::Gather(int request, int kv_head,
                                                             int value) const {
  const int context = options_.past + options_.rows;
  const int64_t blocks_each = (context + kKvBlockTokens - 1) / kKvBlockTokens;
  std::vector<float> gathered;
  std::vector<uint16_t> tile(cache_.tile_elements());
  for (int token = 0; token < context; ++token) {
    if (token % kKvBlockTokens == 0) {
      const int64_t block = table_[request * blocks_each + token / kKvBlockTokens];
      FABRICAST_RETURN_IF_CUDA_FAILS(cudaMemcpy(tile.data(),
                                                pool_.get() + cache_.tile(block, kv_head, value),
                                                tile.size() * 2, cudaMemcpyDeviceToHost));
    }
    for (int dim = 0; dim < options_.head_dim; ++dim) {
      gathered.push_back(FromBf16(tile[cache_.in_tile(token % kKvBlockTokens, dim)]));
    }
  }
  return gathered;
}

absl::StatusOr<double> AttentionWorkload::RelativeError() const {
  const int head_dim = options_.head_dim, group = options_.heads / options_.kv_heads;
  const absl::StatusOr<std::vector<uint16_t>> queries = queries_.ToHost(),
                                              output = output_.ToHost();
  if (!queries.ok()) return queries.status();
  if (!output.ok()) return output.status();
  double square_error = 0, square = 0;
  for (const auto& [request, kv_head] : {std::pair(0, 0),
                                         {options_.requests - 1, options_.kv_heads - 1},
                                         {options_.requests / 2, options_.kv_heads / 2}}) {
    const absl::StatusOr<std::vector<float>> keys = Gather(request, kv_head, 0);
    const absl::StatusOr<std::vector<float>> values = Gather(request, kv_head, 1);
    if (!keys.ok()) return keys.status();
    if (!values.ok()) return values.status();
    for (const int row : {0, options_.rows / 2, options_.rows - 1}) {
      for (const int in_group : {0, group - 1}) {
        const size_t at = ((size_t(request) * options_.rows + row) * options_.heads +
                           kv_head * group + in_group) *
                          head_dim;
        std::vector<float> query;
        for (int dim = 0; dim < head_dim; ++dim) query.push_back(FromBf16((*queries)[at + dim]));
        const size_t count = size_t(options_.past + row + 1) * head_dim;
        const AttentionReferenceOutput reference =
            AttentionReference(query, absl::MakeSpan(*keys).first(count),
                               absl::MakeSpan(*values).first(count), arguments(0).scale);
        for (int dim = 0; dim < head_dim; ++dim) {
          const double expected = reference.output[dim];
          const double error = FromBf16((*output)[at + dim]) - expected;
          square_error += error * error;
          square += expected * expected;
        }
      }
    }
  }
  return std::sqrt(square_error / square);
}

}  // namespace fabricast
