// A serving run that was measured request by request, and what can be read from such a log.
//
// The log is casys-kaist/LLMServingSim's: a meta file, and one object a line with `input_toks`,
// `output_toks`, `arrival_time` (wall clock) and `queued_ts`, `scheduled_ts`, `first_token_ts`,
// `last_token_ts` (vLLM's monotonic clock). The two clocks' difference is not in it: the least
// queued_ts - arrival_time of all requests counts as 0, which makes every measured time from
// arrival short by what even the luckiest request needed to reach the engine (a millisecond or so).
#ifndef FABRICAST_BENCHMARKS_VALIDATION_SERVING_LOG_H_
#define FABRICAST_BENCHMARKS_VALIDATION_SERVING_LOG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/metrics/result.pb.h"
#include "runtime/workload/workload.h"

namespace fabricast {

// Seconds since the first arrival.
struct ServedRequest {
  double arrival_s = 0;
  double queued_s = 0;
  double scheduled_s = 0;
  double first_token_s = 0;
  double last_token_s = 0;
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
};

struct ServingLog {
  std::string model;
  std::string engine;  // "vLLM 0.19.0"
  int max_running = 0;
  int64_t max_batch_tokens = 0;
  std::vector<ServedRequest> requests;  // by arrival
};

// `meta` and `lines` are the texts of the two files. kInvalidArgument names the line and field.
absl::StatusOr<ServingLog> ParseServingLog(absl::string_view meta, absl::string_view lines);

// The same arrivals and lengths, for a replay.
Workload ReplayOf(const ServingLog& log);

// In the schema of a simulated run, as far as the log goes: counts, TTFT, TPOT, E2E, queue wait,
// duration and rates. Times count from the request's arrival, as for every Result.
Result Measured(const ServingLog& log);

// Steps that only decode, seen between the last tokens of two requests.
//
// Requests whose first tokens came in one step count the same steps afterwards, so between their
// last tokens lie as many steps as their outputs differ.
struct DecodeWindow {
  int64_t steps = 0;
  double step_s = 0;    // mean
  double requests = 0;  // mean number running
  double context = 0;   // mean KV-cache tokens of all of them together
};

// By requests. Windows with a prompt in them are left out, and those of fewer than 15 steps.
std::vector<DecodeWindow> DecodeWindows(const ServingLog& log);

// Steps that take in whole prompts beside decodes.
//
// vLLM puts a step together when the one before it starts, so between a request's `scheduled_ts`
// and its first token lie that one and its own. Another request's first or last token in between
// marks the boundary.
struct PromptStep {
  std::vector<int64_t> prompts;  // tokens of each
  int64_t decodes = 0;
  double context = 0;  // KV-cache tokens of all decodes together
  double step_s = 0;
};

// In order of time. Left out are prompts that did not fit one step or shared it with a part of
// another's, steps without decodes, and steps whose start nothing marks.
std::vector<PromptStep> PromptSteps(const ServingLog& log);

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_VALIDATION_SERVING_LOG_H_
