// Lines two runs of one workload up, token by token.
//
// As long as two worlds take the same decisions, micro-batch k of one holds what micro-batch k of
// the other holds. From the first difference on, micro-batches correspond by what they compute: a
// decode by its request and token, prefill by request and prompt positions, whatever the chunks; a
// prompt that is computed again after a preemption (the request's second pass, third ...) by the
// same pass.
#ifndef FABRICAST_RUNTIME_METRICS_ALIGNMENT_H_
#define FABRICAST_RUNTIME_METRICS_ALIGNMENT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/metrics/event_log.h"

namespace fabricast {

// Two steps (indices into RunEvents.steps) with tokens that both compute.
struct StepPair {
  int first;
  int second;
  int64_t tokens;  // that they share
  bool alike;      // both hold as many decodes, and as many prefill tokens
};

struct Alignment {
  // From the start, so many steps of both runs hold the same entries.
  int same_steps = 0;
  // Of the next step, what only one of them holds: "the decode of request 3 at token 25"; or that
  // there is none. Both empty: the runs are alike to their ends.
  std::string only_in_first;
  std::string only_in_second;
  std::vector<StepPair> pairs;  // in order of `first`, then `second`
  // Steps none of whose tokens the other run computed.
  std::vector<int> first_alone;
  std::vector<int> second_alone;
  // For each request of the first run the index in the second, or -1.
  std::vector<int> second_request;
};

// kInvalidArgument, saying what differs, if these are not runs of one workload on as many stages.
absl::StatusOr<Alignment> Align(const RunEvents& first, const RunEvents& second);

// The tokens that two steps share: "3:25 7:0-63", request:position or its first and last position.
std::string SharedTokens(const RunEvents& first, int first_step, const RunEvents& second,
                         int second_step);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_METRICS_ALIGNMENT_H_
