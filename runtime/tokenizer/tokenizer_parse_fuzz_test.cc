// Any text is a tokenizer that encodes and decodes, or a refusal.
#include <cstdint>
#include <cstdlib>

#include "runtime/tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view json(reinterpret_cast<const char*>(data), size);
  const auto parsed = fabricast::Tokenizer::Parse("tokenizer.json", json);
  if (!parsed.ok()) return 0;
  const fabricast::Tokenizer& tokenizer = **parsed;
  for (const bool add_special_tokens : {false, true}) {
    const auto ids = tokenizer.Encode("ab <s> cafe\u0301 12345\n", add_special_tokens);
    if (!ids.ok()) continue;  // the pattern backtracks without end
    for (const int32_t id : *ids) {
      if (id < 0 || id >= tokenizer.size()) abort();
    }
    tokenizer.Decode(*ids, /*skip_special_tokens=*/true);
  }
  return 0;
}
