// The arithmetic of a stage on a GPU: what runtime/executor/cpu/decoder.h computes, with kernels/.
//
// The residual stream is FP32; what enters a matrix product is BF16 or FP16 as the weights want it
// (kernels/int4/activations.h), what leaves it BF16, and so are keys and values. Sums are FP32, and
// in an order that depends on the number of tokens of the step: the same step gives the same bits.
//
// Where several GPUs share the stage, each has a decoder of its share of the weights, and all are
// given the same steps. The residual stream is the same on all, bit for bit: rank 0 adds its part
// of a product of o or down to it, the others write theirs over it, and the group sums them in
// place; twice a layer, tokens x hidden FP32. What comes from the stage before is rank 0's, and
// zero on the others, before it is summed. Of a lm_head that is divided by vocabulary each computes
// its part of the logits and gathers all; each samples.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_DECODER_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_DECODER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/dense/cublaslt.h"
#include "kernels/gpu/gpu_stream.h"
#include "kernels/int4/activations.h"
#include "kernels/int4/gemm_output.h"
#include "runtime/executor/cuda/cuda_device.h"
#include "runtime/executor/cuda/cuda_weights.h"
#include "runtime/executor/cuda/device_memory.h"
#include "runtime/executor/cuda/stage_shape.h"
#include "runtime/executor/cuda/step_buffer.h"
#include "runtime/model/decoder_config.h"
#include "runtime/nccl/nccl.h"

namespace fabricast {

struct CudaDecoderOptions {
  int64_t max_tokens = 0;   // of a step
  int64_t max_entries = 0;  // of a step; bitmaps of histories, too
  int64_t kv_blocks = 0;    // of kKvBlockTokens tokens
  int64_t max_table = 0;    // block numbers of a step
};

// Not thread-safe; one owner. Of the device that is current whenever it is called. Enqueues into
// the stream that it is given, and allocates nothing after it was made.
class CudaDecoder {
 public:
  // Bytes of the GPU's memory that Make takes: for KV cache, and for all else.
  struct Bytes {
    int64_t kv_cache = 0;
    int64_t buffers = 0;
  };
  static absl::StatusOr<Bytes> BytesNeeded(const StageShape& shape,
                                           const CudaDecoderOptions& options,
                                           const CudaDevice& device, CublasLt& cublas);

  // `weights` are of `shape`; `memory` outlives this.
  static absl::StatusOr<std::unique_ptr<CudaDecoder>> Make(const DecoderConfig& config,
                                                           const StageShape& shape,
                                                           const CudaWeights& weights,
                                                           const CudaDecoderOptions& options,
                                                           const CudaDevice& device,
                                                           CublasLt& cublas, DeviceMemory& memory);

  // From here on the others of the group take part, in whatever is called: all ranks make the same
  // calls. Before, or with null, their parts are missing, which is enough to load kernels and to
  // try them out. `group`: of the shape's rank and ranks; outlives this.
  void Join(NcclCommunicator* group);

  // The device's copy of the step buffer. `logits`: FP32 [sampled, logits_stride()].
  std::byte* step_buffer() const { return step_buffer_; }
  const float* logits() const { return logits_; }
  int64_t logits_stride() const;

  // Makes the KV cache all zero, so that no block holds what is not finite.
  absl::Status ClearCache(GpuStream stream);

  // Takes the tokens of `shape`'s step, whose buffer is on the device, into the histories' bitmaps;
  // those of `fresh` are cleared before.
  absl::Status RecordHistories(const StepShape& shape, absl::Span<const int32_t> fresh,
                               GpuStream stream);

  // The step in step_buffer(), of shape `shape`, part by part and in this order: from `input` or
  // the embedding; layer after layer; the search for rows that are not finite; and to `output`, or
  // to logits and the sampled tokens in the buffer. `input` and `output`: [tokens, hidden] BF16 in
  // the GPU's memory; not used on the first stage and on the last, nor in a group but by rank 0.
  // Every launch depends on them and `shape` alone, but for its table.
  absl::Status ComputeInput(const StepShape& shape, const void* input, GpuStream stream);
  absl::Status ComputeLayer(const StepShape& shape, size_t layer, GpuStream stream);
  absl::Status FindNotFiniteRow(const StepShape& shape, GpuStream stream);
  absl::Status ComputeOutput(const StepShape& shape, void* output, GpuStream stream);
  // All of them.
  absl::Status Compute(const StepShape& shape, const void* input, void* output, GpuStream stream);
  size_t layers() const { return weights_.layers.size(); }

 private:
  CudaDecoder(const DecoderConfig& config, const StageShape& shape, const CudaWeights& weights,
              const CudaDecoderOptions& options, const CudaDevice& device, CublasLt& cublas);

  // A buffer, how large it is, and who points to it.
  struct Buffer {
    const char* name;
    int64_t bytes;
    void** pointer;
  };
  std::vector<Buffer> Buffers();

  ActivationLayout LayoutFor(const CudaMatrix& matrix, int tokens) const;
  // Where a matrix's input goes.
  Activations InputOf(const CudaMatrix& matrix, int tokens) const;
  absl::Status Multiply(const CudaMatrix& matrix, const Activations& input, OutputKind kind,
                        void* output, int64_t stride, const LaunchOptions& launch);
  // hidden_ += input x matrix^T + bias, of all ranks.
  absl::Status SumResidual(int tokens, GpuStream stream);
  absl::Status AddToResidual(const CudaMatrix& matrix, const Activations& input, GpuStream stream);
  // Of the kernel that follows it, or whatever else has left the residual stream of so many tokens.
  LaunchOptions AfterResidual(int tokens, GpuStream stream) const {
    return {.stream = stream,
            .overlap_previous =
                group_ == nullptr || group_->SumOverlaps(int64_t{tokens} * shape_.hidden)};
  }
  absl::Status Attend(const StepShape& shape, size_t layer, const LaunchOptions& launch);
  absl::Status Sample(const StepShape& shape, GpuStream stream);
  // Of a rank's part of a divided lm_head.
  absl::Status ComputeDividedLogits(const Activations& input, GpuStream stream);
  KvCacheView Cache(size_t layer) const;
  template <typename T>
  T* InStep(int64_t offset) const {
    return reinterpret_cast<T*>(step_buffer_ + offset);
  }

  const DecoderConfig config_;
  const StageShape shape_;
  const CudaWeights weights_;
  const CudaDecoderOptions options_;
  const int compute_capability_;
  CublasLt& cublas_;
  NcclCommunicator* group_ = nullptr;

  std::byte* step_buffer_ = nullptr;
  float* hidden_ = nullptr;        // [tokens, hidden]: the residual stream
  void* activations_ = nullptr;    // what enters a matrix product
  float* token_scale_ = nullptr;   // of packed activations
  void* products_ = nullptr;       // BF16: q, k and v, or gate and up
  float* f32_products_ = nullptr;  // of FP16 weights, before they are rounded to the above
  void* attended_ = nullptr;       // BF16 [tokens, heads * head_dim]
  float* frequencies_ = nullptr;   // RoPE's
  std::byte* kv_cache_ = nullptr;  // layer after layer
  float* logits_ = nullptr;
  float* divided_logits_ = nullptr;  // [ranks, sampled, a part's stride]
  uint32_t* histories_ = nullptr;
  void* attention_workspace_ = nullptr;
  void* mma_workspace_ = nullptr;
  void* wgmma_workspace_ = nullptr;
  void* dequantized_ = nullptr;  // of INT4 weights that many tokens are multiplied with
  int64_t dequantized_bytes_ = 0;
  void* cublas_workspace_ = nullptr;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_CUDA_DECODER_H_
