// What a safetensors file says of itself: its first 8 bytes are the length of a JSON object, which
// follows, and which gives each tensor's dtype, shape and place in the rest of the file.
//
// The format: https://github.com/huggingface/safetensors#format
#ifndef FABRICAST_RUNTIME_WEIGHTS_SAFETENSORS_HEADER_H_
#define FABRICAST_RUNTIME_WEIGHTS_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/weights/tensor.h"

namespace fabricast {

// How many bytes the length of the header takes.
constexpr int64_t kHeaderLengthBytes = 8;

// A tensor's description, and where its bytes lie after the header.
struct TensorPlace {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t begin = 0;
  int64_t end = 0;  // begin + elements x DTypeBytes
};

// Little-endian, from the file's first kHeaderLengthBytes.
uint64_t DecodeHeaderLength(absl::string_view bytes);

// From `json`, which `data_bytes` follow in `file`; ordered by place. The places are in range and
// cover the data without a gap or an overlap. __metadata__ is ignored, and so are fields of a
// tensor that the format does not know.
//
// kInvalidArgument, as "FILE: TENSOR: VALUE: MEND", else.
absl::StatusOr<std::vector<TensorPlace>> ParseSafetensorsHeader(absl::string_view file,
                                                                absl::string_view json,
                                                                int64_t data_bytes);

// "[128, 64]".
std::string ShapeText(const std::vector<int64_t>& shape);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WEIGHTS_SAFETENSORS_HEADER_H_
