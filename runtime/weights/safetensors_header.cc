#include "runtime/weights/safetensors_header.h"

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/check.h"
#include "runtime/weights/json_events.h"

namespace fabricast {
namespace {

constexpr char kDamaged[] = "the file is damaged: download it again";

// NumPy has 64 at most, and weights have two or three.
constexpr size_t kMaxRank = 64;

constexpr std::array kDTypes = {DType::kBool,   DType::kU8,  DType::kI8,  DType::kF8E4M3,
                                DType::kF8E5M2, DType::kI16, DType::kU16, DType::kF16,
                                DType::kBf16,   DType::kI32, DType::kU32, DType::kF32,
                                DType::kI64,    DType::kU64, DType::kF64};

std::optional<DType> FindDType(absl::string_view name) {
  for (DType dtype : kDTypes) {
    if (name == DTypeName(dtype)) return dtype;
  }
  return std::nullopt;
}

std::string DTypeNames() {
  return absl::StrJoin(
      kDTypes, ", ", [](std::string* out, DType dtype) { absl::StrAppend(out, DTypeName(dtype)); });
}

// Empty if int64_t cannot hold it.
std::optional<int64_t> BytesOf(DType dtype, const std::vector<int64_t>& shape) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  int64_t bytes = DTypeBytes(dtype);
  for (int64_t dimension : shape) {
    if (__builtin_mul_overflow(bytes, dimension, &bytes)) return std::nullopt;
  }
  return bytes;
}

absl::Status Invalid(absl::string_view file, absl::string_view tensor, absl::string_view message) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", Shown(tensor), ": ", message));
}

class HeaderReader : public JsonHandler {
 public:
  explicit HeaderReader(absl::string_view file) : file_(file) {}

  std::vector<TensorPlace> TakePlaces() { return std::move(places_); }

  absl::Status Begin(const Path& path, bool is_object) override {
    if (path.empty()) return is_object ? absl::OkStatus() : NotAnObject("[...]");
    if (IsMetadata(path)) return absl::OkStatus();
    if (path.size() == 1) {
      dtype_.reset();
      shape_.reset();
      offsets_.reset();
      return is_object ? absl::OkStatus() : Wrong(path, "[...]", "an object");
    }
    std::optional<std::vector<int64_t>>* const numbers = Numbers(path);
    if (path.size() == 2 && path[1] == "dtype") return Wrong(path, "[...]", "a string");
    if (numbers == nullptr) return absl::OkStatus();
    if (path.size() > 2 || is_object) return Wrong(path, "[...]", kWholeNumbers);
    numbers->emplace();
    return absl::OkStatus();
  }

  absl::Status Scalar(const Path& path, const JsonScalar& scalar) override {
    if (path.empty()) return NotAnObject(ScalarText(scalar));
    if (IsMetadata(path)) return absl::OkStatus();
    if (path.size() == 1) return Wrong(path, ScalarText(scalar), "an object");
    if (path.size() == 2 && path[1] == "dtype") return SetDType(path, scalar);
    std::optional<std::vector<int64_t>>* const numbers = Numbers(path);
    if (numbers == nullptr) return absl::OkStatus();
    const int64_t* const number = std::get_if<int64_t>(&scalar);
    if (path.size() == 2 || number == nullptr || *number < 0) {
      return Wrong(path, ScalarText(scalar), kWholeNumbers);
    }
    if ((*numbers)->size() == kMaxRank) {
      return Wrong(path, "[...]", absl::StrCat("at most ", kMaxRank, " numbers"));
    }
    (*numbers)->push_back(*number);
    return absl::OkStatus();
  }

  absl::Status End(const Path& path) override {
    if (path.size() != 1 || IsMetadata(path)) return absl::OkStatus();
    if (!dtype_) return Wrong({path[0], "dtype"}, "missing", "a string");
    if (!shape_) return Wrong({path[0], "shape"}, "missing", kWholeNumbers);
    if (!offsets_) return Wrong({path[0], "data_offsets"}, "missing", kWholeNumbers);
    if (offsets_->size() != 2 || (*offsets_)[0] > (*offsets_)[1]) {
      return Wrong({path[0], "data_offsets"}, ShapeText(*offsets_), "a begin and an end");
    }
    TensorPlace place = {path[0], *dtype_, *std::move(shape_), (*offsets_)[0], (*offsets_)[1]};
    const std::optional<int64_t> bytes = BytesOf(place.dtype, place.shape);
    if (bytes != place.end - place.begin) {
      return Invalid(file_, place.name,
                     absl::StrCat(DTypeName(place.dtype), " ", ShapeText(place.shape), " takes ",
                                  bytes ? WithCommas(*bytes) : "more than 2^63",
                                  " bytes, and data_offsets ", ShapeText(*offsets_), " leave ",
                                  WithCommas(place.end - place.begin), ": ", kDamaged));
    }
    places_.push_back(std::move(place));
    return absl::OkStatus();
  }

 private:
  static constexpr char kWholeNumbers[] = "an array of whole numbers";

  static bool IsMetadata(const Path& path) { return !path.empty() && path[0] == "__metadata__"; }

  // The array that `path` is, or is in.
  std::optional<std::vector<int64_t>>* Numbers(const Path& path) {
    if (path.size() < 2) return nullptr;
    if (path[1] == "shape") return &shape_;
    return path[1] == "data_offsets" ? &offsets_ : nullptr;
  }

  absl::Status SetDType(const Path& path, const JsonScalar& scalar) {
    const std::string* const name = std::get_if<std::string>(&scalar);
    if (name == nullptr) return Wrong(path, ScalarText(scalar), "a string");
    dtype_ = FindDType(*name);
    if (dtype_) return absl::OkStatus();
    return Invalid(file_, path[0],
                   absl::StrCat("dtype \"", Shown(*name), "\" is unknown: convert it to one of ",
                                DTypeNames()));
  }

  absl::Status NotAnObject(absl::string_view found) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ": the header is ", found, " instead of an object: ", kDamaged));
  }

  absl::Status Wrong(const Path& path, absl::string_view found, absl::string_view wanted) {
    return Invalid(file_, path[0],
                   absl::StrCat(path.size() > 1 ? path[1] : "", path.size() > 1 ? " is " : "is ",
                                found, " instead of ", wanted, ": ", kDamaged));
  }

  const absl::string_view file_;
  std::vector<TensorPlace> places_;
  // Of the tensor that is being read.
  std::optional<DType> dtype_;
  std::optional<std::vector<int64_t>> shape_;
  std::optional<std::vector<int64_t>> offsets_;
};

// `places` are ordered.
absl::Status CheckPlaces(absl::string_view file, const std::vector<TensorPlace>& places,
                         int64_t header_bytes, int64_t data_bytes) {
  int64_t end = 0;
  const TensorPlace* before = nullptr;
  for (const TensorPlace& place : places) {
    if (place.begin != end) {
      const std::string previous = before ? Shown(before->name) : "the header";
      return Invalid(
          file, place.name,
          absl::StrCat("begins at byte ", WithCommas(place.begin),
                       place.begin < end ? ", inside of " : ", with a hole after ", previous,
                       ", which ends at byte ", WithCommas(end), ": ", kDamaged));
    }
    end = place.end;
    before = &place;
  }
  if (end < data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": has ", WithCommas(data_bytes - end),
                                                   " bytes that no tensor owns: ", kDamaged));
  }
  for (const TensorPlace& place : places) {
    if (place.end <= data_bytes) continue;
    const uint64_t before_data = static_cast<uint64_t>(kHeaderLengthBytes + header_bytes);
    return Invalid(
        file, place.name,
        absl::StrCat("lies beyond the end of the file: download it again: ",
                     WithCommas(before_data + static_cast<uint64_t>(data_bytes)), " of ",
                     WithCommas(before_data + static_cast<uint64_t>(end)), " bytes are there"));
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t DecodeHeaderLength(absl::string_view bytes) {
  FABRICAST_CHECK(bytes.size() >= kHeaderLengthBytes) << "size=" << bytes.size();
  uint64_t length = 0;
  for (int64_t i = 0; i < kHeaderLengthBytes; ++i) {
    length |= static_cast<uint64_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  }
  return length;
}

absl::StatusOr<std::vector<TensorPlace>> ParseSafetensorsHeader(absl::string_view file,
                                                                absl::string_view json,
                                                                int64_t data_bytes) {
  HeaderReader reader(file);
  if (absl::Status status = ReadJson(file, json, kDamaged, reader); !status.ok()) return status;
  std::vector<TensorPlace> places = reader.TakePlaces();
  std::sort(places.begin(), places.end(), [](const TensorPlace& a, const TensorPlace& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  const auto header_bytes = static_cast<int64_t>(json.size());
  if (absl::Status status = CheckPlaces(file, places, header_bytes, data_bytes); !status.ok()) {
    return status;
  }
  return places;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace fabricast
