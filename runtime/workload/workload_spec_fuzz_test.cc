// Any specification is sound or a refusal, and lengths drawn from a sound one are within bounds.
#include <cstdint>
#include <cstdlib>
#include <variant>

#include "runtime/workload/workload_spec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<fabricast::WorkloadSpec> spec = fabricast::ParseWorkloadSpec(text);
  if (!spec.ok()) return 0;
  const auto* synthetic = std::get_if<fabricast::SyntheticSpec>(&*spec);
  if (synthetic == nullptr) return 0;
  boost::random::mt19937_64 random(1);
  for (int i = 0; i < 10; ++i) {
    const int64_t tokens = synthetic->input.Draw(random);
    if (tokens < 1 || tokens > fabricast::kMaxTokens) abort();
  }
  if (synthetic->requests < 1 || synthetic->Description().empty()) abort();
  return 0;
}
