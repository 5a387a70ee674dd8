#include "runtime/tokenizer/json_part.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace fabricast {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 64;
constexpr size_t kMaxShown = 80;  // characters of a value in a message

// The place of the first bracket that is too deep; `text.size()` if there is none.
size_t FindTooDeep(absl::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') {
      in_string = !in_string;
    } else if (in_string) {
      if (c == '\\') ++i;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return i;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return text.size();
}

const Json& Null() {
  static const Json& null = *new Json;
  return null;
}

}  // namespace

absl::StatusOr<Json> ParseJson(absl::string_view file, absl::string_view text) {
  const size_t too_deep = FindTooDeep(text);
  if (too_deep < text.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: byte %d: nested more than %d deep: give a file of Hugging Face", file,
                        too_deep, kMaxDepth));
  }
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ...": the name says
    // nothing to the reader.
    absl::string_view cause = e.what();
    const size_t name_end = cause.find("] ");
    if (name_end != absl::string_view::npos) cause.remove_prefix(name_end + 2);
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": not JSON: ", absl::CHexEscape(cause.substr(0, 2 * kMaxShown)),
                     ": give a file of Hugging Face"));
  }
}

absl::StatusOr<std::string> ReadJsonFile(const std::string& path, size_t max_bytes) {
  namespace fs = std::filesystem;
  const std::string shown = absl::CHexEscape(path);
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) {
    return absl::NotFoundError(absl::StrCat(shown, ": no such file",
                                            error &&
                                                    error != std::errc::no_such_file_or_directory &&
                                                    error != std::errc::not_a_directory
                                                ? absl::StrCat(" (", error.message(), ")")
                                                : "",
                                            ": give the folder of a checkpoint"));
  }
  if (!fs::is_regular_file(status)) {
    return absl::InvalidArgumentError(absl::StrCat(shown, ": not a file: give one"));
  }
  const uintmax_t bytes = fs::file_size(path, error);
  if (!error && bytes > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        shown, ": ", bytes, " bytes: give a file of Hugging Face, at most ", max_bytes));
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(error ? 0 : bytes, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!in) {
    return absl::PermissionDeniedError(
        absl::StrCat(shown, ": cannot be read: ", std::strerror(errno)));
  }
  return text;
}

JsonPart JsonPart::operator[](absl::string_view field) const {
  std::string place = place_.empty() ? std::string(field) : absl::StrCat(place_, ".", field);
  const Json* value = &Null();
  if (value_->is_object()) {
    const auto it = value_->find(std::string(field));
    if (it != value_->end()) value = &*it;
  }
  return JsonPart(*document_, std::move(place), *value);
}

JsonPart JsonPart::operator[](size_t i) const {
  const bool there = value_->is_array() && i < value_->size();
  return JsonPart(*document_, absl::StrCat(place_, "[", i, "]"), there ? (*value_)[i] : Null());
}

size_t JsonPart::ArraySize(absl::string_view mend) const {
  if (value_->is_array()) return value_->size();
  Invalid(mend);
  return 0;
}

bool JsonPart::CheckObject(absl::string_view mend) const {
  if (value_->is_object()) return true;
  Invalid(mend);
  return false;
}

bool JsonPart::Bool() const {
  if (value_->is_boolean()) return value_->get<bool>();
  Invalid("give true or false");
  return false;
}

int32_t JsonPart::Whole(int32_t lo, int32_t hi) const {
  // An unsigned number beyond INT64_MAX wraps to a negative one, which `lo` >= 0 refuses too.
  const bool whole = value_->is_number_integer();
  if (whole && lo <= value_->get<int64_t>() && value_->get<int64_t>() <= hi) {
    return static_cast<int32_t>(value_->get<int64_t>());
  }
  Invalid(absl::StrFormat("give a whole number from %d to %d", lo, hi));
  return lo;
}

std::string JsonPart::Text() const {
  if (value_->is_string()) return value_->get<std::string>();
  Invalid("give a string");
  return "";
}

std::string JsonPart::TextOr(absl::string_view otherwise) const {
  return is_null() ? std::string(otherwise) : Text();
}

void JsonPart::Invalid(absl::string_view mend) const {
  if (document_->status.ok()) document_->status = absl::InvalidArgumentError(Message(mend));
}

void JsonPart::Unimplemented(absl::string_view mend) const {
  if (document_->status.ok()) document_->status = absl::UnimplementedError(Message(mend));
}

void JsonPart::Refuse(const absl::Status& status) const {
  if (!document_->status.ok()) return;
  document_->status = absl::Status(
      status.code(), absl::StrCat(document_->file, ": ", place_, ": ", status.message()));
}

std::string JsonPart::Message(absl::string_view mend) const {
  std::string shown;
  if (value_->is_structured()) {  // may be as long as the file
    shown =
        absl::StrFormat("%s of %d", value_->is_array() ? "an array" : "an object", value_->size());
  } else if (value_->is_string() && value_->get_ref<const std::string&>().size() > kMaxShown) {
    shown = absl::StrCat(
        "\"", absl::CHexEscape(value_->get_ref<const std::string&>().substr(0, kMaxShown)),
        "...\"");
  } else {
    shown = value_->dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  }
  return absl::StrCat(document_->file, ": ", place_.empty() ? "" : absl::StrCat(place_, ": "),
                      shown, ": ", mend);
}

}  // namespace fabricast
