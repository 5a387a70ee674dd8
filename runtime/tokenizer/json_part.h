// Checked reading of a JSON document.
#ifndef FABRICAST_RUNTIME_TOKENIZER_JSON_PART_H_
#define FABRICAST_RUNTIME_TOKENIZER_JSON_PART_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace fabricast {

// A JSON document, at most 64 levels deep. kInvalidArgument, naming `file` and the place, if it is
// not that; throws nothing.
absl::StatusOr<nlohmann::json> ParseJson(absl::string_view file, absl::string_view text);

// The content of a file of at most `max_bytes`. kNotFound if there is none.
absl::StatusOr<std::string> ReadJsonFile(const std::string& path, size_t max_bytes);

// One value of a document, with its place.
//
// A value of the wrong type or out of range gives one that is safe to go on with, and the first
// such error is kept: read all, then look at it once. Messages are "FILE: PLACE: VALUE: MEND".
class JsonPart {
 public:
  struct Document {
    std::string file;
    absl::Status status;  // the first error
  };

  // `value` and `document` must outlive this.
  JsonPart(Document& document, std::string place, const nlohmann::json& value)
      : document_(&document), place_(std::move(place)), value_(&value) {}

  const nlohmann::json& json() const { return *value_; }
  bool is_null() const { return value_->is_null(); }

  // Of an object; null if it is not there.
  JsonPart operator[](absl::string_view field) const;
  // Of an array.
  JsonPart operator[](size_t i) const;
  // 0, and an error, if it is not an array.
  size_t ArraySize(absl::string_view mend) const;
  bool CheckObject(absl::string_view mend) const;  // an error if it is none

  bool Bool() const;
  bool BoolOr(bool otherwise) const { return is_null() ? otherwise : Bool(); }
  int32_t Whole(int32_t lo, int32_t hi) const;  // lo >= 0
  std::string Text() const;
  std::string TextOr(absl::string_view otherwise) const;

  void Invalid(absl::string_view mend) const;
  void Unimplemented(absl::string_view mend) const;
  // An error that already has "VALUE: MEND".
  void Refuse(const absl::Status& status) const;

 private:
  std::string Message(absl::string_view mend) const;

  Document* document_;
  std::string place_;
  const nlohmann::json* value_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TOKENIZER_JSON_PART_H_
