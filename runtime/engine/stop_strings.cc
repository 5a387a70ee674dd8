#include "runtime/engine/stop_strings.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"

namespace fabricast {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  stops_.erase(
      std::remove_if(stops_.begin(), stops_.end(), [](const std::string& s) { return s.empty(); }),
      stops_.end());
}

std::string StopStrings::Append(absl::string_view text) {
  if (matched()) return "";
  if (stops_.empty()) return std::string(text);
  std::string shown;
  for (const char c : text) {
    held_ += c;
    for (size_t i = 0; i < stops_.size(); ++i) {
      if (!absl::EndsWith(held_, stops_[i])) continue;
      if (!matched() || stops_[i].size() > match().size()) match_ = static_cast<int>(i);
    }
    if (matched()) {
      shown.append(held_, 0, held_.size() - match().size());
      held_.clear();
      return shown;
    }
    // What no stop string begins with any more.
    size_t certain = 0;
    while (certain < held_.size() && !MayBecomeStop(absl::string_view(held_).substr(certain))) {
      ++certain;
    }
    shown.append(held_, 0, certain);
    held_.erase(0, certain);
  }
  return shown;
}

bool StopStrings::MayBecomeStop(absl::string_view text) const {
  return std::any_of(stops_.begin(), stops_.end(),
                     [text](const std::string& stop) { return absl::StartsWith(stop, text); });
}

std::string StopStrings::Finish() { return std::exchange(held_, ""); }

}  // namespace fabricast
