// How a pipeline is kept full: what a request costs a stage, how many micro-batches are in flight,
// and how long prefill chunks are.
//
// Micro-batches. m in flight share R decoding requests, b = ceil(R / m) each, and each passes S
// stages of time t_s(b). A request's next token takes
//
//     token(m) = max(m max_s t_s(b), sum_s t_s(b) + w)
//
// where w is what a micro-batch spends between stages: the messages down the pipeline, the tokens
// back, and the head's next launch. The first term is a pipeline whose slowest stage never waits,
// the second one that waits for micro-batches to come around. Once the first is the longer, more
// micro-batches only cost: while weights bound a decode step, t_s(b) hardly shrinks with b, and
// each of them reads all weights again. So the choice is the least token(m) from m = S, of which
// prompts need as many for their chunks, to the first m at which the slowest stage never waits; the
// fewest of those within 0.1 %.
//
// Chunks. A prompt of P tokens in chunks of c passes the pipeline in
//
//     ttft(c) = (P / c - 1) max_s t_s(c) + sum_s t_s(c)
//
// which for equal stages and t proportional to c is (1 + (S - 1) c / P) / S of the time without
// chunks: 0.38 for 8,192 tokens in chunks of 512 on three stages. Short chunks waste the GPU, whose
// products are bound by reading weights below the ridge of its roofline and by filling its
// multiprocessors above it. So the choice is among powers of two of at least 95 % of the best rate
// of the slowest stage: the one of least ttft(c); the shortest if the prompt is not known, since
// decodes beside a chunk wait for it.
#ifndef FABRICAST_RUNTIME_PLAN_PIPELINING_H_
#define FABRICAST_RUNTIME_PLAN_PIPELINING_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "runtime/cost/stage_cost.h"

namespace fabricast {

// The requests that a pipeline is expected to serve.
struct ExpectedLoad {
  int64_t requests = 8;    // that decode at a time
  int64_t context = 2048;  // of a decode, tokens
  int64_t prompt = 0;      // tokens; 0: not known, decodes alone count
  int64_t output = 1;      // tokens
};

// Seconds that a request keeps a stage busy: the chunks of its prompt, all as the middle one, and
// for each output token its share of a decode micro-batch. Takes prefill and decodes as
// micro-batches of their own.
double RequestSeconds(const StageCost& stage, const ExpectedLoad& load, int micro_batches,
                      int64_t chunk);

struct MicroBatchChoice {
  int micro_batches = 1;
  int64_t decodes = 1;   // of each, b
  double slowest_s = 0;  // max t_s(b)
  double sum_s = 0;      // sum t_s(b)
  double between_s = 0;  // w
  double token_s = 0;
};

// `between_s` gives w for micro-batches of that many decodes. `stages`: at least one.
MicroBatchChoice ChooseMicroBatches(absl::Span<const StageCost> stages, const ExpectedLoad& load,
                                    const std::function<double(int64_t decodes)>& between_s);

struct ChunkChoice {
  int64_t tokens = 0;
  double rate_fraction = 0;  // of the best rate of all candidates
  double ttft_s = 0;         // of load.prompt; 0 if that is not known
  double unchunked_s = 0;    // the same in one chunk, however long
};

// Powers of two from 64 to `most`, and `most`. `stages`: at least one.
ChunkChoice ChooseChunk(absl::Span<const StageCost> stages, const ExpectedLoad& load, int64_t most);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_PLAN_PIPELINING_H_
