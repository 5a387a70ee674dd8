// A step as the GPU's kernels read it: all arrays in one buffer, so that one copy brings them
// there, and one brings back what they found.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_STEP_BUFFER_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_STEP_BUFFER_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "kernels/sampling/sampling.h"
#include "runtime/executor/cuda/stage_requests.h"
#include "runtime/executor/stage_executor.h"

namespace fabricast {

// How much a step has of what; with a padding, of that too.
struct StepShape {
  int tokens = 0;
  int entries = 0;
  int sampled = 0;
  int singles = 0;       // entries of one token; the others are chunks
  int chunk_tokens = 0;  // of all chunks
  int longest_chunk = 0;
  bool histories = false;  // some of the tokens are to be recorded
  int64_t table = 0;       // block numbers
};

// Where what lies, in bytes from the start of the buffer; a function of the shape alone, and of all
// but the block table of its first three numbers, so that a graph finds the arrays of another step
// at the same places. Arrays begin at multiples of 16.
struct StepLayout {
  explicit StepLayout(const StepShape& shape);

  // What the GPU finds, at the start.
  int64_t first_bad_row = 0;   // int32, INT32_MAX before
  int64_t sampled_tokens = 0;  // GpuSampledToken [sampled]
  int64_t found_bytes = 0;     // of both
  // What it reads.
  int64_t sampling = 0;        // GpuSamplingRow [sampled]
  int64_t tokens = 0;          // int32 [tokens], as all that follow
  int64_t positions = 0;       // [tokens]
  int64_t cache_slots = 0;     // [tokens]
  int64_t token_history = 0;   // [tokens]; -1: none
  int64_t first_row = 0;       // [entries]
  int64_t rows = 0;            // [entries]
  int64_t first_position = 0;  // [entries]
  int64_t table_start = 0;     // [entries]
  int64_t sampled_rows = 0;    // [sampled]
  int64_t block_table = 0;     // [table]
  int64_t bytes = 0;           // of all
};

// The most that a buffer must hold.
int64_t StepBufferBytes(int64_t max_tokens, int64_t max_entries, int64_t max_table);

// Of `step`, after `requests` has taken it. `samples`: this is the last stage. `padded`: 0, or for
// a step of decodes that all sample (unless they are not to), how many entries it is filled up to
// with ones of no rows, whose tokens are not cached nor sampled.
StepShape ShapeOf(const Step& step, bool samples, const StageRequests& requests, int padded = 0);

// Whether `step` has decodes only, each of which samples if this is the last stage.
bool IsDecodeStep(const Step& step, bool samples);

// Writes `step` of that shape to `buffer`, StepLayout(shape).bytes of it.
void PackStep(const Step& step, bool samples, const StageRequests& requests, const StepShape& shape,
              absl::Span<std::byte> buffer);

// A step of nothing but padding: what kernels are tried out, and graphs captured, with.
StepShape EmptyDecodeShape(int entries, bool samples);
// A chunk of two tokens or more that are not cached: they read block 0 instead, again and again.
StepShape EmptyChunkShape(int tokens, int sampled);
void PackEmpty(const StepShape& shape, absl::Span<std::byte> buffer);

// Entries for which graphs are kept: a step of fewer is filled up to the next of them.
absl::Span<const int> GraphBuckets();
// The smallest that holds `entries` and is at most `largest`; 0 if there is none.
int GraphBucket(int entries, int largest);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_STEP_BUFFER_H_
