// A stage's weights in a GPU's memory, in the layouts that the kernels read.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_WEIGHTS_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_WEIGHTS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/dense/cublaslt.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/int4/int4_matrix.h"
#include "runtime/executor/cuda/device_memory.h"
#include "runtime/executor/cuda/stage_shape.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {

// A matrix of one of the two kinds, and its bias.
struct CudaMatrix {
  MatrixFormat format = MatrixFormat::kBf16;
  Int4Matrix int4;              // kInt4
  DenseMatrix dense;            // otherwise
  const float* bias = nullptr;  // [outputs]; null: none

  int64_t outputs() const { return format == MatrixFormat::kInt4 ? int4.outputs : dense.outputs; }
  int64_t inputs() const { return format == MatrixFormat::kInt4 ? int4.inputs : dense.inputs; }
};

struct CudaLayer {
  const float* input_norm = nullptr;  // [hidden]
  CudaMatrix qkv;
  const float* q_norm = nullptr;  // [head_dim]; null: none
  const float* k_norm = nullptr;
  CudaMatrix o;
  const float* post_attention_norm = nullptr;
  CudaMatrix gate_up;
  CudaMatrix down;
};

struct CudaWeights {
  ElementType embedding_type = ElementType::kBf16;
  const void* embedding = nullptr;  // null: not on this stage
  std::vector<CudaLayer> layers;
  const float* final_norm = nullptr;  // null: not on this stage, nor lm_head
  CudaMatrix lm_head;
};

// Copies `weights` to the current device: while the GPU's copy engine empties one page-locked
// buffer, `threads` fill the other from the checkpoint's mapping, whose pages are then released.
// AWQ is repacked on the GPU; what has to be converted otherwise is so on the host. A rank's share
// is cut out as it is read. Memory comes from `memory`, shape.weight_bytes() and some for
// alignment; beside it, for the time of the call, one layer's largest matrix.
//
// Returns when all of it is there. Errors are CUDA's, and kResourceExhausted from `memory`.
absl::StatusOr<CudaWeights> LoadCudaWeights(const StageShape& shape, const StageWeights& weights,
                                            int threads, DeviceMemory& memory);

// Weights of that shape out of nothing: a function of `seed`, the layer's place in the model and
// the rank alone, such that outputs of matrix products are about as large as their inputs. Those of
// several ranks are not parts of one rank's.
absl::StatusOr<CudaWeights> MakeSyntheticCudaWeights(const StageShape& shape, int64_t first_layer,
                                                     uint64_t seed, DeviceMemory& memory);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_WEIGHTS_H_
