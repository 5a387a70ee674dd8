// Any text is a sound model or a refusal.
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "runtime/model/model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  for (absl::string_view quantization : {"", "int4"}) {
    const absl::StatusOr<fabricast::Model> model =
        fabricast::ParseModelConfig("config.json", text, quantization);
    if (!model.ok()) continue;
    const double flops = model->flops_per_token(model->max_context);
    const double bytes = model->layer(0).decode_bytes(1, model->max_context);
    if (model->parameters() <= 0 || model->weight_bytes() <= 0 ||
        model->kv_bytes_per_token() <= 0 || !std::isfinite(flops) || !std::isfinite(bytes) ||
        !model->CheckTensorParallel(1).ok()) {
      abort();
    }
  }
  return 0;
}
