// Ends a text before the first stop string in it, while it is still being written.
#ifndef FABRICAST_RUNTIME_ENGINE_STOP_STRINGS_H_
#define FABRICAST_RUNTIME_ENGINE_STOP_STRINGS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace fabricast {

// Holds back the end of the text for as long as it may be the beginning of a stop string, so that
// no part of one is ever shown, however it is cut into tokens.
class StopStrings {
 public:
  // Empty stop strings never match.
  explicit StopStrings(std::vector<std::string> stops);

  // Text that can be shown, now that `text` has been written. Nothing follows a match.
  std::string Append(absl::string_view text);
  // What was held back, now that the text is at its end; empty after a match.
  std::string Finish();

  // The stop string that was found: the one that is complete first, of those the longest.
  bool matched() const { return match_ >= 0; }
  const std::string& match() const { return stops_[match_]; }

 private:
  bool MayBecomeStop(absl::string_view text) const;

  std::vector<std::string> stops_;
  std::string held_;
  int match_ = -1;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_STOP_STRINGS_H_
