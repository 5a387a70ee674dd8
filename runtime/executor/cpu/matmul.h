// Matrix products: the activations of a micro-batch times a linear layer's weights.
//
// output[row][n] = sum over k of input[row][k] * weights[n][k], + bias[n].
//
// Order of the sum: lane l of 16 adds the products of inputs l, l + 16, l + 32, ... one after
// another, each multiplied and added with one rounding; the lanes are added as lanes-inl.h says. It
// depends on nothing else: not on the number of rows, nor on threads.
//
// How: a tile of some rows times some outputs (4 x 6 with AVX-512) keeps its sums in registers, so
// that a vector of weights is loaded and converted to float32 once for all these rows, and a vector
// of inputs once for all these outputs. A task is 60 outputs: their weights stay in the L2 cache
// while its rows pass by, four at a time.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_MATMUL_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_MATMUL_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/executor/cpu/float_matrix.h"
#include "runtime/executor/cpu/linear.h"
#include "runtime/executor/cpu/thread_pool.h"

namespace fabricast {

struct Product {
  const Linear* weights;
  int64_t rows;
  const float* input;  // zeros from weights->in to the next multiple of 16 (FloatMatrix)
  int64_t input_stride;
  float* output;
  int64_t output_stride;
  bool add = false;  // to what is in `output`
};

// Scratch of fixed size for each thread.
class MatMul {
 public:
  explicit MatMul(ThreadPool* pool);

  // All products, at once: they must not read what another of them writes.
  void Run(absl::Span<const Product> products);

 private:
  ThreadPool* pool_;
  int64_t scale_floats_ = 0;
  std::vector<AlignedFloats> scratch_;  // one a thread
  std::vector<int64_t> first_task_;     // of each product
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_MATMUL_H_
