#ifndef FABRICAST_RUNTIME_MODEL_CONFIG_FIELDS_H_
#define FABRICAST_RUNTIME_MODEL_CONFIG_FIELDS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace fabricast {

// More is no config.json: the longest are some 100 kB.
constexpr size_t kMaxConfigBytes = 4'000'000;

// The text of a config.json or of another JSON file of a checkpoint. kNotFound if there is no such
// file, kInvalidArgument if it is none or larger than kMaxConfigBytes.
absl::StatusOr<std::string> ReadConfigFile(const std::string& path);

// A JSON document as Python's json module writes it: NaN, Infinity and -Infinity become strings of
// that name. At most 64 levels deep. kInvalidArgument, naming `file` and the place, if it is not
// that; throws nothing.
absl::StatusOr<nlohmann::json> ParsePythonJson(absl::string_view file, absl::string_view text);

// The same for a text of at most kMaxConfigBytes that holds an object.
absl::StatusOr<nlohmann::json> ParseConfigObject(absl::string_view file, absl::string_view text);

// Checked access to the fields of one JSON object.
//
// A field that is missing, of the wrong type or out of range gives a value that is safe to go on
// with, and the first such error is kept in `*status`: read all fields, then look at it once.
// Messages are "FILE: PREFIX.FIELD: VALUE: MEND". A field that is null counts as missing, as for
// Hugging Face.
class ConfigFields {
 public:
  // `object` and `status` must outlive this.
  ConfigFields(std::string file, std::string prefix, const nlohmann::json& object,
               absl::Status* status);

  // Null if the field is missing.
  const nlohmann::json* Find(absl::string_view field) const;

  int64_t Whole(absl::string_view field, int64_t lo, int64_t hi);  // `lo` on error
  int64_t WholeOr(absl::string_view field, int64_t lo, int64_t hi, int64_t otherwise);
  double Number(absl::string_view field, double lo, double hi);  // `lo` on error
  double NumberOr(absl::string_view field, double lo, double hi, double otherwise);
  bool BoolOr(absl::string_view field, bool otherwise);
  std::string TextOr(absl::string_view field, absl::string_view otherwise);
  // The list in `field` of whole numbers or of strings; empty if the field is missing or on error.
  std::vector<int64_t> WholesOr(absl::string_view field, int64_t lo, int64_t hi);
  std::vector<std::string> TextsOr(absl::string_view field);
  // The fields of the object in `field`; of an empty object on error.
  ConfigFields Object(absl::string_view field);

  // Keep an error about `field`, unless there is one already.
  void Invalid(absl::string_view field, absl::string_view mend);
  void Unimplemented(absl::string_view field, absl::string_view mend);

  const nlohmann::json& json() const { return *object_; }

 private:
  std::string Message(absl::string_view field, absl::string_view mend) const;

  std::string file_;
  std::string prefix_;
  const nlohmann::json* object_;
  absl::Status* status_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_MODEL_CONFIG_FIELDS_H_
