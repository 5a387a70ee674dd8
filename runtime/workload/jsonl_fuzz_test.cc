// Any text is a sound trace or a refusal.
#include "runtime/workload/trace_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  fabricast::AbortUnlessSound(fabricast::ParseJsonl("x.jsonl", text));
  return 0;
}
