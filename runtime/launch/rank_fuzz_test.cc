// Any environment, given as lines NAME=value, has a sound place, none, or is refused.
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_split.h"
#include "runtime/launch/rank.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  fabricast::Environment environment;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::pair<std::string, std::string> variable =
        absl::StrSplit(line, absl::MaxSplits('=', 1));
    environment.insert(variable);
  }
  const absl::StatusOr<std::optional<fabricast::Place>> found =
      fabricast::FindPlace(environment, {});
  if (!found.ok()) {
    if (found.status().message().empty()) abort();
    return 0;
  }
  if (!found->has_value()) return 0;
  const fabricast::Place& place = **found;
  const int size_or_more = place.size.value_or(place.rank + 2);
  if (place.rank < 0 || place.rank >= size_or_more || size_or_more < 2) abort();
  if (place.launcher.empty() || (place.head.has_value() && place.head->empty())) abort();
  if (place.local_rank.has_value() && place.local_size.has_value() &&
      *place.local_rank >= *place.local_size) {
    abort();
  }
  return 0;
}
