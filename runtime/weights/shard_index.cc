#include "runtime/weights/shard_index.h"

#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "runtime/weights/json_events.h"

namespace fabricast {
namespace {

constexpr char kMend[] = "give an index of Hugging Face, or download it again";

bool IsPlainFileName(absl::string_view name) {
  const absl::string_view forbidden("/\\\0", 3);
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(forbidden) == absl::string_view::npos;
}

class IndexReader : public JsonHandler {
 public:
  explicit IndexReader(absl::string_view file) : file_(file) {}

  std::vector<IndexEntry> TakeEntries() { return std::move(entries_); }

  absl::Status Begin(const Path& path, bool is_object) override {
    if (path.empty() && !is_object) return Invalid("is [...] instead of an object");
    if (path.empty() || path[0] != "weight_map") return absl::OkStatus();
    if (path.size() > 1) return NotAFileName(path, "[...]");
    return is_object ? absl::OkStatus() : Invalid("weight_map: is [...] instead of an object");
  }

  absl::Status Scalar(const Path& path, const JsonScalar& scalar) override {
    if (path.empty()) return Invalid(absl::StrCat("is ", ScalarText(scalar), " and no object"));
    if (path[0] != "weight_map") return absl::OkStatus();
    if (path.size() == 1) {
      return Invalid(absl::StrCat("weight_map: is ", ScalarText(scalar), " instead of an object"));
    }
    const std::string* const shard = std::get_if<std::string>(&scalar);
    if (shard == nullptr || !IsPlainFileName(*shard)) {
      return NotAFileName(path, ScalarText(scalar));
    }
    entries_.push_back({path[1], *shard});
    return absl::OkStatus();
  }

  absl::Status End(const Path& path) override {
    if (path.empty() && entries_.empty()) return Invalid("weight_map: lists no tensors");
    return absl::OkStatus();
  }

 private:
  absl::Status Invalid(absl::string_view message) {
    return absl::InvalidArgumentError(absl::StrCat(file_, ": ", message, ": ", kMend));
  }
  absl::Status NotAFileName(const Path& path, absl::string_view found) {
    return Invalid(
        absl::StrCat(Shown(path[1]), ": is in ", found, " instead of a file beside the index"));
  }

  const absl::string_view file_;
  std::vector<IndexEntry> entries_;
};

}  // namespace

absl::StatusOr<std::vector<IndexEntry>> ParseShardIndex(absl::string_view file,
                                                        absl::string_view json) {
  IndexReader reader(file);
  if (absl::Status status = ReadJson(file, json, kMend, reader); !status.ok()) return status;
  return reader.TakeEntries();
}

}  // namespace fabricast
