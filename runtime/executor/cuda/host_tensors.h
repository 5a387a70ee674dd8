// Tensors of a checkpoint as the GPU takes them, where that is not as they lie in their file.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_HOST_TENSORS_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_HOST_TENSORS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/executor/cuda/stage_shape.h"
#include "runtime/weights/stage_weights.h"
#include "runtime/weights/tensor.h"

namespace fabricast {

// Some columns of some rows of a matrix in memory: `rows` times `row_bytes` bytes, each `stride`
// behind the one before. Does not own them.
struct ByteRows {
  const std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t row_bytes = 0;
  int64_t stride = 0;

  int64_t bytes() const { return rows * row_bytes; }
  // Copies `count` of the bytes, counted row after row without what lies between, from the
  // `first`-th on.
  void Copy(int64_t first, int64_t count, std::byte* to) const;
};

ByteRows RowsOf(absl::Span<const std::byte> bytes);  // one row
// Of a tensor [rows, columns].
ByteRows RowsOf(const Tensor& tensor, int64_t first_row, int64_t rows, int64_t first_column,
                int64_t columns);

// What a rank has of a linear layer: outputs [first_out, first_out + out), and inputs alike.
struct LinearPart {
  int64_t first_out = 0;
  int64_t out = 0;
  int64_t first_in = 0;
  int64_t in = 0;
};

// `out` and `in` are the rank's, as in its MatrixShape: all of the layer's, or a share of them.
LinearPart PartOf(const LinearWeights& weights, int64_t out, int64_t in, int rank);

struct AwqRows {
  ByteRows qweight;
  ByteRows qzeros;
  ByteRows scales;
};

// In AutoAWQ's layout again. Outputs are multiples of 8, inputs of the group.
AwqRows RowsOf(const AwqWeights& weights, const LinearPart& part);

// [out, in] in 16 bits; as they lie in the file if they are what `format` is.
class DenseRows {
 public:
  DenseRows(const LinearWeights& weights, const LinearPart& part, MatrixFormat format);
  const ByteRows& rows() const { return rows_; }

 private:
  std::vector<uint16_t> halves_;  // if they had to be converted
  ByteRows rows_;
};

// Exactly; of BF16, F16 and F32.
std::vector<float> ToFloats(const Tensor& tensor);

// The bits of BF16 or F16, rounded to nearest, ties to even.
std::vector<uint16_t> ToHalves(absl::Span<const float> floats, MatrixFormat format);

// [out, in] of (q - z) * s, in float.
std::vector<float> Dequantize(const AwqWeights& weights, int64_t in, int64_t out);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_HOST_TENSORS_H_
