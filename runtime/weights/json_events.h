// Reads JSON without building it: headers of checkpoints have up to 100 MB.
#ifndef FABRICAST_RUNTIME_WEIGHTS_JSON_EVENTS_H_
#define FABRICAST_RUNTIME_WEIGHTS_JSON_EVENTS_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace fabricast {

// What a file of the format may have at most, and so an index too.
constexpr int64_t kMaxHeaderBytes = 100'000'000;

// A value that is neither object nor array; whole numbers that int64_t lacks come as double, null
// as monostate.
using JsonScalar = std::variant<std::monostate, bool, int64_t, double, std::string>;

// As JSON, for messages.
std::string ScalarText(const JsonScalar& scalar);

// `path` leads from the root to the value: keys, and "" inside an array. An error ends the reading.
class JsonHandler {
 public:
  using Path = std::vector<std::string>;

  virtual ~JsonHandler() = default;
  virtual absl::Status Begin(const Path& path, bool is_object) = 0;
  virtual absl::Status End(const Path& path) = 0;
  virtual absl::Status Scalar(const Path& path, const JsonScalar& scalar) = 0;
};

// Passes all of `text` to `handler`. kInvalidArgument, as "FILE: ...: MEND", if it is not JSON, has
// more than 64 levels or twice the same key in one object; else the handler's first error.
absl::Status ReadJson(absl::string_view file, absl::string_view text, absl::string_view mend,
                      JsonHandler& handler);

// `text`, shortened and without characters that a terminal would not show.
std::string Shown(absl::string_view text);

// 1234567 as "1,234,567".
std::string WithCommas(uint64_t number);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WEIGHTS_JSON_EVENTS_H_
