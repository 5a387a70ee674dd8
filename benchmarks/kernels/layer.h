// A decoder layer on one GPU, put together from //kernels as the executor does: what its kernels,
// and all of them together, take.
//
//   RmsNorm, q k v product, RopeAndAppend, attention, PackRows, o product, added to the residual;
//   RmsNorm, gate and up product, SwiGlu, down product, added to the residual.
//
// Weights are synthetic INT4, in several copies, so that a layer finds nothing of itself in the L2
// cache.
#ifndef FABRICAST_BENCHMARKS_KERNELS_LAYER_H_
#define FABRICAST_BENCHMARKS_KERNELS_LAYER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/dense/cublaslt.h"
#include "kernels/gpu/gpu_stream.h"
#include "kernels/int4/int4_choice.h"

namespace fabricast {

struct LayerShape {
  std::string model;
  int hidden = 0;
  int ffn = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;

  int64_t attention_outputs() const { return int64_t{heads} * head_dim; }
  int64_t qkv_outputs() const { return int64_t{heads + 2 * kv_heads} * head_dim; }
  // Keys and values of a token, BF16.
  int64_t kv_bytes() const { return int64_t{4} * kv_heads * head_dim; }
};

// Llama 3.1 of 405, 70 and 8 billion parameters, from their config.json.
std::vector<LayerShape> Llama31Layers();

// A micro-batch of requests that are alike.
struct LayerStep {
  int requests = 1;
  int rows = 1;      // tokens of each: 1 for decodes, more for a chunk of a prompt
  int64_t past = 0;  // of each, in the cache before

  int tokens() const { return requests * rows; }
  int64_t context() const { return past + rows; }
};

// In the order in which they run.
enum class LayerKernel {
  kAttentionNorm,
  kQkv,
  kRope,
  kAttention,
  kPack,
  kO,
  kFfnNorm,
  kGateUp,
  kSwiGlu,
  kDown,
};
constexpr int kLayerKernels = 10;
// "rms_norm_attention", "qkv", ...
const char* NameOf(LayerKernel kernel);
bool IsProduct(LayerKernel kernel);

// A set of them: bit i is LayerKernel i.
using LayerKernels = uint32_t;
constexpr LayerKernels kAllLayerKernels = (1u << kLayerKernels) - 1;
constexpr LayerKernels Only(LayerKernel kernel) { return 1u << static_cast<int>(kernel); }

// What a kernel does in a step.
struct LayerWork {
  std::string kernel;   // "int4_gemm_mma"
  int64_t outputs = 0;  // matrix products
  int64_t inputs = 0;
  // The fewest that go through memory. Of products and attention: weights, keys and values, since
  // activations of few tokens stay in the L2 cache; of the others: what they read and write.
  double bytes = 0;
  double operations = 0;  // 2 a multiply-add; masked scores are left out
  bool runs = true;       // PackRows has nothing to do before a product that reads rows
};

class LayerBenchmark {
 public:
  // Of the current device. `cublas` may be null; steps that need it are then kUnavailable. Fills
  // the weights. kResourceExhausted if the GPU has too little memory.
  static absl::StatusOr<std::unique_ptr<LayerBenchmark>> Create(const LayerShape& shape,
                                                                CublasLt* cublas, GpuStream stream);
  virtual ~LayerBenchmark() = default;

  // Allocates and fills what a step needs, in the place of the last step's. Caches that together
  // would take more than `cache_limit` bytes are kResourceExhausted.
  virtual absl::Status SetStep(const LayerStep& step, int64_t cache_limit) = 0;

  // Enqueues those kernels of layer `index` (modulo copies()) that `kernels` holds.
  virtual absl::Status Enqueue(int64_t index, LayerKernels kernels,
                               const LaunchOptions& options) = 0;
  virtual LayerWork WorkOf(LayerKernel kernel) const = 0;
  virtual int copies() const = 0;  // of the weights

  // Runs every copy once, from fresh input: all of the residual stream must be finite.
  virtual absl::Status CheckFinite() = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_KERNELS_LAYER_H_
