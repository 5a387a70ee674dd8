// What a client asks of the engine, and what it hears.
#ifndef FABRICAST_RUNTIME_ENGINE_GENERATION_H_
#define FABRICAST_RUNTIME_ENGINE_GENERATION_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/executor/sampling.h"
#include "runtime/scheduler/scheduler.h"

namespace fabricast {

struct GenerationRequest {
  std::vector<int32_t> prompt;    // token ids, at least one
  int64_t max_output_tokens = 0;  // at least 1
  SamplingParams sampling;
  std::vector<int32_t> stop_tokens;  // the last token: end of sequence. Counts, but is not text
  std::vector<std::string> stop;     // the text ends before the first of these
};

// What came with one output token, or the end of a request.
struct GenerationUpdate {
  RequestId request = -1;
  std::optional<SampledToken> token;     // absent where a request ends without one
  std::string text;                      // that is certain now; empty without a tokenizer
  std::optional<FinishReason> finished;  // with the last update of a request
  std::string stop;                      // the stop string, if one ended it
  // Of a request that can never run, or that was lost with the pipeline: the last update.
  absl::Status error;

  bool last() const { return finished.has_value() || !error.ok(); }
};

// Called on the engine's thread, in order; must not block. May submit and cancel requests.
using GenerationListener = std::function<void(const GenerationUpdate&)>;

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_GENERATION_H_
