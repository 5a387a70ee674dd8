#include "runtime/model/config_fields.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace fabricast {
namespace {

namespace fs = std::filesystem;

using Json = nlohmann::json;

constexpr int kMaxDepth = 64;
constexpr size_t kMaxShown = 80;  // characters of a value in a message

std::string Shortened(std::string text) {
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  return text;
}

// Copies `text` with Python's NaN, Infinity and -Infinity quoted; counts levels on the way.
absl::StatusOr<std::string> Standardised(absl::string_view file, absl::string_view text) {
  std::string result;
  result.reserve(text.size());
  int depth = 0;
  for (size_t i = 0; i < text.size();) {
    const absl::string_view rest = text.substr(i);
    size_t taken = 1;
    bool quote = false;
    if (rest[0] == '"') {
      while (taken < rest.size() && rest[taken] != '"') taken += rest[taken] == '\\' ? 2 : 1;
      taken = std::min(taken + 1, rest.size());
    } else if (rest[0] == '{' || rest[0] == '[') {
      if (++depth > kMaxDepth) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "%s: byte %d: nested more than %d deep: give a config.json of Hugging Face", file, i,
            kMaxDepth));
      }
    } else if (rest[0] == '}' || rest[0] == ']') {
      --depth;
    } else {
      for (absl::string_view token : {"NaN", "Infinity", "-Infinity"}) {
        if (absl::StartsWith(rest, token)) {
          taken = token.size();
          quote = true;
        }
      }
    }
    const absl::string_view piece = rest.substr(0, taken);
    absl::StrAppend(&result, quote ? "\"" : "", piece, quote ? "\"" : "");
    i += taken;
  }
  return result;
}

}  // namespace

absl::StatusOr<std::string> ReadConfigFile(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file",
                                            error && error != std::errc::no_such_file_or_directory
                                                ? absl::StrCat(" (", error.message(), ")")
                                                : ""));
  }
  if (!fs::is_regular_file(status)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a file: give a config.json"));
  }
  const uintmax_t bytes = fs::file_size(path, error);
  if (!error && bytes > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", bytes, " bytes, and a config.json has at most ", kMaxConfigBytes,
                     ": give a config.json of Hugging Face"));
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(error ? 0 : bytes, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!in) {
    return absl::PermissionDeniedError(
        absl::StrCat(path, ": cannot be read: ", std::strerror(errno)));
  }
  return text;
}

absl::StatusOr<Json> ParsePythonJson(absl::string_view file, absl::string_view text) {
  absl::StatusOr<std::string> standard = Standardised(file, text);
  if (!standard.ok()) return standard.status();
  try {
    return Json::parse(*standard);
  } catch (const Json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ...": the name says
    // nothing to the reader.
    absl::string_view cause = e.what();
    const size_t name_end = cause.find("] ");
    if (name_end != absl::string_view::npos) cause.remove_prefix(name_end + 2);
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": not JSON: ", absl::CHexEscape(cause.substr(0, 2 * kMaxShown)),
                     ": give a config.json of Hugging Face"));
  }
}

absl::StatusOr<Json> ParseConfigObject(absl::string_view file, absl::string_view text) {
  if (text.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: %d bytes, and a config.json has at most %d: give a config.json of Hugging Face", file,
        text.size(), kMaxConfigBytes));
  }
  absl::StatusOr<Json> parsed = ParsePythonJson(file, text);
  if (!parsed.ok()) return parsed.status();
  if (!parsed->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": holds a JSON ", parsed->type_name(),
                                                   ", not an object: give a config.json of "
                                                   "Hugging Face"));
  }
  return parsed;
}

ConfigFields::ConfigFields(std::string file, std::string prefix, const Json& object,
                           absl::Status* status)
    : file_(std::move(file)), prefix_(std::move(prefix)), object_(&object), status_(status) {}

const Json* ConfigFields::Find(absl::string_view field) const {
  const auto it = object_->find(std::string(field));
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

int64_t ConfigFields::Whole(absl::string_view field, int64_t lo, int64_t hi) {
  const Json* value = Find(field);
  // get<int64_t> of an unsigned number beyond INT64_MAX wraps to a negative one, which `lo` >= 0
  // would refuse too.
  if (value != nullptr && value->is_number_integer() && lo <= value->get<int64_t>() &&
      value->get<int64_t>() <= hi) {
    return value->get<int64_t>();
  }
  Invalid(field, absl::StrFormat("give a whole number from %d to %d", lo, hi));
  return lo;
}

int64_t ConfigFields::WholeOr(absl::string_view field, int64_t lo, int64_t hi, int64_t otherwise) {
  return Find(field) == nullptr ? otherwise : Whole(field, lo, hi);
}

double ConfigFields::Number(absl::string_view field, double lo, double hi) {
  const Json* value = Find(field);
  if (value != nullptr && value->is_number() && lo <= value->get<double>() &&
      value->get<double>() <= hi) {
    return value->get<double>();
  }
  Invalid(field, absl::StrFormat("give a number from %g to %g", lo, hi));
  return lo;
}

double ConfigFields::NumberOr(absl::string_view field, double lo, double hi, double otherwise) {
  return Find(field) == nullptr ? otherwise : Number(field, lo, hi);
}

bool ConfigFields::BoolOr(absl::string_view field, bool otherwise) {
  const Json* value = Find(field);
  if (value == nullptr) return otherwise;
  if (value->is_boolean()) return value->get<bool>();
  Invalid(field, "give true or false");
  return otherwise;
}

std::string ConfigFields::TextOr(absl::string_view field, absl::string_view otherwise) {
  const Json* value = Find(field);
  if (value != nullptr && value->is_string()) return value->get<std::string>();
  if (value != nullptr) Invalid(field, "give a string");
  return std::string(otherwise);
}

std::vector<int64_t> ConfigFields::WholesOr(absl::string_view field, int64_t lo, int64_t hi) {
  const Json* list = Find(field);
  if (list == nullptr) return {};
  bool sound = list->is_array();
  std::vector<int64_t> numbers;
  for (const Json& value : *list) {
    sound = sound && value.is_number_integer() && lo <= value.get<int64_t>() &&
            value.get<int64_t>() <= hi;
    if (!sound) break;
    numbers.push_back(value.get<int64_t>());
  }
  if (sound) return numbers;
  Invalid(field, absl::StrFormat("give a list of whole numbers from %d to %d", lo, hi));
  return {};
}

std::vector<std::string> ConfigFields::TextsOr(absl::string_view field) {
  const Json* list = Find(field);
  if (list == nullptr) return {};
  bool sound = list->is_array();
  std::vector<std::string> texts;
  for (const Json& value : *list) {
    sound = sound && value.is_string();
    if (!sound) break;
    texts.push_back(value.get<std::string>());
  }
  if (sound) return texts;
  Invalid(field, "give a list of strings");
  return {};
}

ConfigFields ConfigFields::Object(absl::string_view field) {
  static const Json& empty = *new Json(Json::object());
  const Json* value = Find(field);
  const bool sound = value != nullptr && value->is_object();
  if (!sound) Invalid(field, "give an object");
  return ConfigFields(file_, absl::StrCat(prefix_, field, "."), sound ? *value : empty, status_);
}

void ConfigFields::Invalid(absl::string_view field, absl::string_view mend) {
  status_->Update(absl::InvalidArgumentError(Message(field, mend)));
}

void ConfigFields::Unimplemented(absl::string_view field, absl::string_view mend) {
  status_->Update(absl::UnimplementedError(Message(field, mend)));
}

std::string ConfigFields::Message(absl::string_view field, absl::string_view mend) const {
  const Json* value = Find(field);
  const std::string shown =
      value == nullptr
          ? "missing"
          : Shortened(value->dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace));
  return absl::StrCat(file_, ": ", prefix_, field, ": ", shown, ": ", mend);
}

}  // namespace fabricast
