// "did you mean ...": the known name that is closest to one that was mistyped.
#ifndef FABRICAST_TOPOLOGY_NEAREST_NAME_H_
#define FABRICAST_TOPOLOGY_NEAREST_NAME_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace fabricast {

// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`; case does
// not count. Only the first 64 characters are looked at, so that the cost is bounded.
std::size_t EditDistance(absl::string_view a, absl::string_view b);

// The name closest to `name`, the first of several; empty if none is close: within a third of the
// longer one's length, or one contains the other.
std::string NearestName(absl::string_view name, const std::vector<std::string>& known);

// The end of an error message: `; did you mean "x"? There are: x, y, z`. At most 20 names are
// listed. With `known` empty: `; there are none`.
std::string Suggest(absl::string_view name, const std::vector<std::string>& known);

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_NEAREST_NAME_H_
