// Any text is an index of files beside it, or a refusal.
#include <cstdint>
#include <cstdlib>

#include "runtime/weights/shard_index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto entries = fabricast::ParseShardIndex("model.safetensors.index.json", text);
  if (!entries.ok()) return 0;
  if (entries->empty()) abort();
  for (const fabricast::IndexEntry& entry : *entries) {
    if (entry.shard.empty() || entry.shard == "." || entry.shard == ".." ||
        entry.shard.find('/') != std::string::npos || entry.shard.find('\0') != std::string::npos) {
      abort();
    }
  }
  return 0;
}
