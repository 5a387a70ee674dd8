// Any text is a header whose tensors cover the data, or a refusal.
#include <cstdint>
#include <cstdlib>

#include "runtime/weights/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  // What the inputs in testdata describe.
  for (int64_t data_bytes : {0, 8, 64}) {
    const auto places = fabricast::ParseSafetensorsHeader("model.safetensors", text, data_bytes);
    if (!places.ok()) continue;
    int64_t end = 0;
    for (const fabricast::TensorPlace& place : *places) {
      int64_t bytes = fabricast::DTypeBytes(place.dtype);
      for (int64_t dimension : place.shape) {
        if (dimension < 0) abort();
        // None of them is more than the data if none is 0.
        bytes = place.begin == place.end ? bytes : bytes * dimension;
      }
      if (place.begin != end || place.end < end) abort();
      if (place.begin != place.end && bytes != place.end - place.begin) abort();
      end = place.end;
    }
    if (end != data_bytes) abort();
  }
  return 0;
}
