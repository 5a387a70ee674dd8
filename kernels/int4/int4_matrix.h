// INT4 weights as the kernels read them: repacked once, when a checkpoint is loaded.
//
// w[n][k] = (q - z) * s, q and z of 4 bits, z and s one for each 128 inputs of an output (AutoAWQ,
// group_size 128, zero_point true).
//
// Blocks of 128 outputs x 128 inputs (one group), inputs fastest: block (n / 128, k / 128) is 8,576
// consecutive bytes, 67 lines of 128 (a bulk copy that does not start on a line is slow):
//   8,192 B nibbles: [m16 tile i = 0 ... 7][64-input half h][lane] 16 B. Word j of a lane is k16
//   step
//     s = 4 h + j; in each 16-bit half of a word the nibbles, low first, belong to the mma A
//     registers a0, a2, a1, a3, and the half selects the even or odd k of the pair.
//   256 B FP16 scales: [i / 4][g = lane / 4][i % 4][fragment row g, g + 8].
//   64 B zeros: [i / 4][g] 4 B: tile i at bits 4 (i % 4) (fragment row g) and 16 + 4 (i % 4) (row g
//   + 8). 64 B unused.
// Row of (tile i, fragment row r) in the block: 32 (i / 2) + 4 (r % 8) + 2 (i % 2) + r / 8, so that
// a
//   thread owns 4 adjacent outputs of a tile pair.
// Input of (lane quad t = lane % 4, step s, value e = 0 ... 3: a0's two, then a2's two):
//   32 (s / 2) + 8 t + 4 (s % 2) + e, so that the B registers of 2 steps are 16 adjacent bytes.
// Stored scales are s * 2^K with a K for each output that brings its largest to [2^15, 2^16);
// row_scale[n] = 2^-K.
#ifndef FABRICAST_KERNELS_INT4_INT4_MATRIX_H_
#define FABRICAST_KERNELS_INT4_INT4_MATRIX_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/gpu/gpu_stream.h"

namespace fabricast {

constexpr int64_t kInt4BlockRows = 128;
constexpr int64_t kInt4GroupInputs = 128;
constexpr int64_t kInt4BlockBytes = 8576;

// In the GPU's memory; does not own it. Outputs and inputs beyond the true ones, up to whole
// blocks, are weights of 0.
struct Int4Matrix {
  int64_t outputs = 0;
  int64_t inputs = 0;
  void* blocks = nullptr;      // block_bytes(), 128-byte aligned
  float* row_scale = nullptr;  // [block_rows() * 128]

  int64_t block_rows() const { return (outputs + kInt4BlockRows - 1) / kInt4BlockRows; }
  int64_t groups() const { return (inputs + kInt4GroupInputs - 1) / kInt4GroupInputs; }
  int64_t block_bytes() const { return block_rows() * groups() * kInt4BlockBytes; }
  int64_t row_scale_bytes() const { return block_rows() * kInt4BlockRows * 4; }
  int64_t bytes() const { return block_bytes() + row_scale_bytes(); }
};

// A linear layer in AutoAWQ's GEMM layout (runtime/weights/stage_weights.h), in the GPU's memory.
struct AwqTensors {
  int64_t outputs = 0;            // a multiple of 8
  int64_t inputs = 0;             // a multiple of 128
  const void* qweight = nullptr;  // int32 [inputs, outputs / 8]
  const void* qzeros = nullptr;   // int32 [inputs / 128, outputs / 8]
  const void* scales = nullptr;   // FP16 [inputs / 128, outputs]
};

// Packs `from` into rows [first_row, first_row + from.outputs) of `to`: q, k and v, or gate and up,
// become one matrix. first_row and the end of all but the last part are multiples of 128; the last
// part also fills what is left of its last block. Enqueues; `from` must stay until that has run.
//
// kInvalidArgument if the parts do not fit together or a size is not as above.
absl::Status PackInt4(const AwqTensors& from, int64_t first_row, Int4Matrix to,
                      const LaunchOptions& options);

// Fills `to` with weights that are a function of seed, row and input alone, q and z uniform, s in
// [0.5, 1.5) / sqrt(46 inputs), so that an output of normal inputs is about normal. What a
// full-scale run without a checkpoint computes with: true shapes and bytes.
absl::Status FillSyntheticInt4(uint64_t seed, Int4Matrix to, const LaunchOptions& options);

// Rows [first_row, first_row + rows), a multiple of 128 both, to BF16 [rows, inputs], row-major.
absl::Status DequantizeInt4(const Int4Matrix& from, int64_t first_row, int64_t rows, void* to,
                            const LaunchOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_INT4_MATRIX_H_
