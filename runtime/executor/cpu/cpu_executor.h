// A pipeline stage on the CPU: the reference that other executors are checked against, and what
// runs where there is no GPU.
//
// Arithmetic: weights as stored (BF16, F16, F32, or AWQ's (q - z) * s, exact in float32),
// activations, KV cache and every sum in float32. A row of a matrix product is summed in an order
// that depends on the shape of the weights alone, attention over a context tile by tile of 64
// tokens from its start: so results are the same bits for any micro-batch, chunk, split into
// stages, number of threads and size of KV blocks, and on any processor that fuses multiply and add
// (AVX2 and AVX-512 do), whatever the width of its vectors.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_CPU_EXECUTOR_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_CPU_EXECUTOR_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "runtime/executor/stage_executor.h"
#include "runtime/model/decoder_config.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {

struct CpuExecutorOptions {
  int threads = 1;               // that compute, the caller's included; >= 1
  int64_t kv_block_tokens = 16;  // > 0
  int64_t kv_blocks = 0;         // > 0; memory is taken as blocks are first used
};

// Keeps `weights`' checkpoint mapped. Dense weights are read where they are mapped; AWQ's are
// copied in another order, 1 % larger at groups of 128, and their pages released. Memory beside the
// weights: KV blocks in use, and scratch for one micro-batch.
//
// kInvalidArgument for options that are out of range; kUnimplemented, naming the tensor, for types
// of weights, and for AWQ groups that are no multiple of 16. CHECKs that shapes are `config`'s.
absl::StatusOr<std::unique_ptr<StageExecutor>> MakeCpuExecutor(const DecoderConfig& config,
                                                               StageWeights weights,
                                                               const CpuExecutorOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_CPU_EXECUTOR_H_
