#include "topology/nearest_name.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace fabricast {
namespace {

constexpr std::size_t kCompared = 64;
constexpr std::size_t kListed = 20;

}  // namespace

std::size_t EditDistance(absl::string_view a, absl::string_view b) {
  a = a.substr(0, kCompared);
  b = b.substr(0, kCompared);
  // Rows of the table for the first i-2, i-1 and i characters of a.
  std::vector<std::size_t> before(b.size() + 1), previous(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) previous[j] = j;
  const auto equal = [&](std::size_t i, std::size_t j) {
    return absl::ascii_tolower(a[i]) == absl::ascii_tolower(b[j]);
  };
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min(
          {previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (equal(i - 1, j - 1) ? 0 : 1)});
      if (i > 1 && j > 1 && equal(i - 1, j - 2) && equal(i - 2, j - 1)) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    std::swap(before, previous);
    std::swap(previous, row);
  }
  return previous[b.size()];
}

std::string NearestName(absl::string_view name, const std::vector<std::string>& known) {
  const std::string wanted = absl::AsciiStrToLower(name);
  std::string nearest;
  std::size_t least = kCompared + 1;
  for (const std::string& candidate : known) {
    std::size_t distance = EditDistance(name, candidate);
    const std::size_t longer = std::min(kCompared, std::max(name.size(), candidate.size()));
    const std::string lower = absl::AsciiStrToLower(candidate);
    const bool contains = name.size() >= 3 && candidate.size() >= 3 &&
                          (absl::StrContains(lower, wanted) || absl::StrContains(wanted, lower));
    if (!contains && distance * 3 > longer) continue;
    if (distance < least) {
      least = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string Suggest(absl::string_view name, const std::vector<std::string>& known) {
  if (known.empty()) return "; there are none";
  const std::string nearest = NearestName(name, known);
  std::string text = nearest.empty()
                         ? "; there are: "
                         : absl::StrCat("; did you mean \"", nearest, "\"? There are: ");
  const std::size_t listed = std::min(known.size(), kListed);
  absl::StrAppend(&text, absl::StrJoin(known.begin(), known.begin() + listed, ", "));
  if (listed < known.size()) absl::StrAppend(&text, " and ", known.size() - listed, " more");
  return text;
}

}  // namespace fabricast
