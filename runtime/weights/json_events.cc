#include "runtime/weights/json_events.h"

#include <limits>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace fabricast {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxShown = 160;  // characters of a name, value or cause in a message

// The parser keeps no stack of calls, so depth costs it nothing but memory.
class Events : public nlohmann::json_sax<Json> {
 public:
  Events(absl::string_view file, absl::string_view mend, JsonHandler& handler)
      : file_(file), mend_(mend), handler_(handler) {}

  const absl::Status& status() const { return status_; }

  bool null() override { return Scalar(std::monostate()); }
  bool boolean(bool value) override { return Scalar(value); }
  bool number_integer(int64_t value) override { return Scalar(value); }
  bool number_unsigned(uint64_t value) override {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Scalar(static_cast<double>(value));
    }
    return Scalar(static_cast<int64_t>(value));
  }
  bool number_float(double value, const std::string&) override { return Scalar(value); }
  bool string(std::string& value) override { return Scalar(std::move(value)); }
  bool binary(Json::binary_t&) override { return Fail("binary"); }  // not in JSON

  bool start_object(size_t) override { return Begin(/*is_object=*/true); }
  bool start_array(size_t) override { return Begin(/*is_object=*/false); }
  bool end_object() override { return End(); }
  bool end_array() override { return End(); }

  bool key(std::string& name) override {
    if (!keys_.back().insert(name).second) {
      return Fail(absl::StrCat(Shown(name), ": twice the same key"));
    }
    path_.back() = std::move(name);
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ...": the name says
    // nothing to the reader.
    absl::string_view cause = e.what();
    const size_t name_end = cause.find("] ");
    if (name_end != absl::string_view::npos) cause.remove_prefix(name_end + 2);
    return Fail(absl::StrCat("not JSON: ", Shown(cause)));
  }

 private:
  bool Fail(absl::string_view cause) {
    return Keep(absl::InvalidArgumentError(absl::StrCat(file_, ": ", cause, ": ", mend_)));
  }
  bool Keep(absl::Status status) {
    status_.Update(std::move(status));
    return status_.ok();
  }

  bool Begin(bool is_object) {
    if (path_.size() >= kMaxDepth) {
      return Fail(absl::StrFormat("nested more than %d deep", kMaxDepth));
    }
    if (!Keep(handler_.Begin(path_, is_object))) return false;
    path_.emplace_back();
    keys_.emplace_back();
    return true;
  }

  bool End() {
    path_.pop_back();
    keys_.pop_back();
    return Keep(handler_.End(path_));
  }

  bool Scalar(const JsonScalar& scalar) { return Keep(handler_.Scalar(path_, scalar)); }

  const absl::string_view file_;
  const absl::string_view mend_;
  JsonHandler& handler_;
  absl::Status status_;
  JsonHandler::Path path_;
  std::vector<absl::flat_hash_set<std::string>> keys_;  // seen so far, of each level of `path_`
};

}  // namespace

std::string ScalarText(const JsonScalar& scalar) {
  struct Printer {
    std::string operator()(std::monostate) const { return "null"; }
    std::string operator()(bool value) const { return value ? "true" : "false"; }
    std::string operator()(int64_t value) const { return absl::StrCat(value); }
    std::string operator()(double value) const { return absl::StrCat(value); }
    std::string operator()(const std::string& value) const {
      return absl::StrCat("\"", Shown(value), "\"");
    }
  };
  return std::visit(Printer(), scalar);
}

absl::Status ReadJson(absl::string_view file, absl::string_view text, absl::string_view mend,
                      JsonHandler& handler) {
  Events events(file, mend, handler);
  Json::sax_parse(text.begin(), text.end(), &events);
  return events.status();
}

std::string Shown(absl::string_view text) {
  return absl::StrCat(absl::CHexEscape(text.substr(0, kMaxShown)),
                      text.size() > kMaxShown ? "..." : "");
}

std::string WithCommas(uint64_t number) {
  std::string digits = absl::StrCat(number);
  for (size_t i = digits.size(); i > 3;) digits.insert(i -= 3, 1, ',');
  return digits;
}

}  // namespace fabricast
