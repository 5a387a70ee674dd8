// Which experts of a mixture compute which tokens.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_ROUTING_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_ROUTING_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/model/decoder_config.h"

namespace fabricast {

struct ExpertChoice {
  int32_t expert;
  float weight;
};

// Chooses a token's experts by its router logits, one an expert: softmax over all of them, then the
// `per_token` largest, of equal ones the lower index; their weights are divided by their sum if
// `normalize`. `choices`: per_token of them, by ascending index. `logits` are scratch afterwards.
void ChooseExperts(const ExpertsConfig& config, absl::Span<float> logits,
                   absl::Span<ExpertChoice> choices);

// The rows of a micro-batch, gathered by expert: expert e computes gathered rows
// [first_row[e], first_row[e + 1]).
struct ExpertRows {
  std::vector<int64_t> first_row;  // experts + 1
  std::vector<int64_t> source;     // of each gathered row, the row of the micro-batch; ascending
                                   // within an expert
  std::vector<int64_t> gathered;   // [rows, per_token]: where each choice is computed
};

// `choices`: [rows, per_token].
void GatherByExpert(const ExpertsConfig& config, absl::Span<const ExpertChoice> choices,
                    ExpertRows& rows);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_ROUTING_H_
