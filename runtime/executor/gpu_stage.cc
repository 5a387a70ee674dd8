#include "runtime/executor/gpu_stage.h"

#include "absl/strings/str_format.h"

namespace fabricast {

std::string GpuStageFigures::Values::Text() const {
  if (gpu.empty()) return "";
  std::string text = absl::StrFormat(
      "%s; %.2f GB of weights in %.2f s (%.1f GB/s); memory planned %.2f GB, used %.2f", gpu,
      weight_bytes / 1e9, load_seconds, weight_bytes / 1e9 / load_seconds, planned_bytes / 1e9,
      used_bytes / 1e9);
  if (decode_steps > 0) {
    absl::StrAppendFormat(&text, "; %d decode steps of %.3f ms, of which the GPU was idle %.2f %%",
                          decode_steps, 1e3 * decode_seconds / decode_steps,
                          100 * idle_seconds / decode_seconds);
  }
  return text;
}

}  // namespace fabricast
