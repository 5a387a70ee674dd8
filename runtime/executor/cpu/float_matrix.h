// Rows of float32 that vector kernels can read without looking at their ends.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_FLOAT_MATRIX_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_FLOAT_MATRIX_H_

#include <cstdint>
#include <cstring>

#include "hwy/aligned_allocator.h"

namespace fabricast {

// All sums run over 16 lanes, whatever the width of the processor's vectors (lanes-inl.h).
inline constexpr int64_t kLanes = 16;

constexpr int64_t RoundUpToLanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

using AlignedFloats = hwy::AlignedFreeUniquePtr<float[]>;

// Zeros, aligned for vectors.
inline AlignedFloats AllocateFloats(int64_t count) {
  // Highway refuses to allocate nothing.
  AlignedFloats floats = hwy::AllocateAligned<float>(count > 0 ? static_cast<size_t>(count) : 1);
  std::memset(floats.get(), 0, static_cast<size_t>(count) * sizeof(float));
  return floats;
}

// [rows, columns], row-major. The columns from columns() to the next multiple of 16 are readable
// and zero: nothing may write them.
class FloatMatrix {
 public:
  FloatMatrix() = default;
  explicit FloatMatrix(int64_t columns) : columns_(columns) {}

  // Values are lost if `rows` is more than ever before.
  void Resize(int64_t rows) {
    rows_ = rows;
    if (rows <= capacity_) return;
    capacity_ = rows;
    floats_ = AllocateFloats(rows * stride());
  }

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  // Between rows. A cache line more than needed: rows that lie a power of two apart would share
  // the few lines of one cache set.
  int64_t stride() const { return RoundUpToLanes(columns_) + kLanes; }
  float* row(int64_t row) { return floats_.get() + row * stride(); }
  const float* row(int64_t row) const { return floats_.get() + row * stride(); }

 private:
  int64_t columns_ = 0;
  int64_t rows_ = 0;
  int64_t capacity_ = 0;
  AlignedFloats floats_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_FLOAT_MATRIX_H_
