#include "runtime/executor/cuda/stage_limits.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/kv_cache.h"

namespace fabricast {
namespace {

constexpr double kGb = 1e9;

}  // namespace

absl::Status CheckOptions(const GpuStageOptions& options) {
  const auto out_of_range = [](const char* name, int64_t value, const std::string& range) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; give ", range));
  };
  if (options.kv_block_tokens < 1 || options.kv_block_tokens % kKvBlockTokens != 0) {
    return out_of_range("--kv-block-tokens", options.kv_block_tokens,
                        absl::StrCat("a multiple of ", kKvBlockTokens, ", as GPUs keep them"));
  }
  if (options.kv_blocks < 1) return out_of_range("kv_blocks", options.kv_blocks, "1 or more");
  if (options.max_batch_tokens < 1) {
    return out_of_range("--max-batch-tokens", options.max_batch_tokens, "1 or more");
  }
  if (options.max_running < 1 || options.max_running > kMaxAttentionEntries) {
    return out_of_range("--max-running", options.max_running,
                        absl::StrCat("1 to ", kMaxAttentionEntries, ", as GPUs compute at a time"));
  }
  return absl::OkStatus();
}

absl::Status CheckFits(const StageShape& shape, const CudaDecoder::Bytes& needed,
                       const GpuStageOptions& options, int64_t free, int64_t total,
                       absl::string_view where) {
  const int64_t weights = shape.weight_bytes();
  const int64_t sum = weights + needed.kv_cache + needed.buffers;
  if (sum <= free) return absl::OkStatus();
  std::string message = absl::StrFormat(
      "%s: %d layers need %.1f GB (weights %.1f, KV cache %.1f, buffers %.1f), and %.1f of its "
      "%.1f "
      "GB are free: %.1f GB short",
      where, shape.layers.size(), sum / kGb, weights / kGb, needed.kv_cache / kGb,
      needed.buffers / kGb, free / kGb, total / kGb, (sum - free) / kGb);
  const int64_t block_bytes = options.kv_block_tokens * shape.kv_bytes_per_token();
  const int64_t room = free - weights - needed.buffers;
  if (block_bytes > 0 && room >= block_bytes) {
    absl::StrAppend(&message, ". --kv-blocks ", room / block_bytes, " fits");
  } else if (!shape.layers.empty()) {
    int64_t layers = 0;
    for (const LayerShape& layer : shape.layers) layers += layer.bytes();
    const int64_t count = static_cast<int64_t>(shape.layers.size());
    const int64_t a_layer = (layers + block_bytes) / count;
    const int64_t fit =
        (free - needed.buffers - (weights - layers)) / std::max<int64_t>(1, a_layer);
    if (fit >= 1) {
      absl::StrAppend(&message, ". At most ", std::min(fit, count - 1),
                      " layers fit: give this stage fewer with --split, or use more GPUs");
    } else {
      absl::StrAppend(&message,
                      ". Not one layer fits: end what else uses this GPU (nvidia-smi lists it), or "
                      "give fewer --max-batch-tokens");
    }
  }
  return absl::ResourceExhaustedError(message);
}

}  // namespace fabricast
