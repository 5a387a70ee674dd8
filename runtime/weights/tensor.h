// A tensor of a checkpoint, where it lies.
#ifndef FABRICAST_RUNTIME_WEIGHTS_TENSOR_H_
#define FABRICAST_RUNTIME_WEIGHTS_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace fabricast {

// The element types of the safetensors format.
enum class DType {
  kBool,
  kU8,
  kI8,
  kF8E4M3,
  kF8E5M2,
  kI16,
  kU16,
  kF16,
  kBf16,
  kI32,
  kU32,
  kF32,
  kI64,
  kU64,
  kF64
};

absl::string_view DTypeName(DType dtype);  // "BF16", as safetensors writes it
int64_t DTypeBytes(DType dtype);

// Row-major, little-endian. Does not own its bytes, which may lie at any address: elements are not
// aligned.
struct Tensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  absl::Span<const std::byte> bytes;  // exactly elements x DTypeBytes

  int64_t elements() const;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WEIGHTS_TENSOR_H_
