// Stages of random weights, of any shape, to be timed.
//
// By processor time: that of all threads together, divided by their number. Threads look for work
// for a while before they sleep, so where nobody else computes this is the time that passes, but
// for the parts of a step that only one of them has and that are long; where others compute too, it
// is what the step would take without them.
#ifndef FABRICAST_BENCHMARKS_ENGINE_RANDOM_STAGE_H_
#define FABRICAST_BENCHMARKS_ENGINE_RANDOM_STAGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/executor/stage_executor.h"
#include "runtime/model/decoder_config.h"
#include "runtime/weights/stage_weights.h"

namespace fabricast {

// Of a Llama without embedding and lm_head.
struct LayerShape {
  int layers = 1;
  int64_t hidden = 0;
  int64_t ffn = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 64;
  bool int4 = false;  // AWQ, else BF16
};

class RandomStage {
 public:
  // `kv_tokens`: places in the KV cache.
  RandomStage(const LayerShape& shape, int threads, int64_t kv_tokens);

  // Processor seconds of a step of `tokens` more tokens of each of `requests` requests that have
  // `context` tokens before them: Undisturbed of `repeats`.
  double Time(int64_t requests, int64_t context, int64_t tokens, int repeats);

 private:
  LinearWeights Linear(int64_t in, int64_t out);
  Tensor Store(DType dtype, std::vector<int64_t> shape, uint32_t mask, uint32_t base);
  // Computes tokens [first_token, first_token + tokens) of requests [first, last).
  double Run(RequestId first, RequestId last, int64_t first_token, int64_t tokens,
             std::vector<RequestId> released = {});

  const LayerShape shape_;
  const int threads_;
  uint64_t state_ = 0x9e3779b97f4a7c15u;
  std::vector<std::vector<uint32_t>> words_;  // of all tensors
  std::unique_ptr<StageExecutor> executor_;
  RequestId next_ = 0;
  std::vector<float> input_;
  std::vector<float> output_;
};

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_ENGINE_RANDOM_STAGE_H_
