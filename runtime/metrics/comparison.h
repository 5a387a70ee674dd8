// What differs between runs, and why.
#ifndef FABRICAST_RUNTIME_METRICS_COMPARISON_H_
#define FABRICAST_RUNTIME_METRICS_COMPARISON_H_

#include <string>
#include <vector>

#include "absl/types/span.h"
#include "runtime/metrics/result.pb.h"

namespace fabricast {

// Every compared metric of each result against the first, with the causes. `results` must not be
// empty.
Comparison Compare(absl::Span<const Result> results);

// Sentences that say what TPOT and TTFT of `result` are bound by, and how they differ from
// `baseline`:
//   "TPOT 136.2 -> 136.1 ms (-0.03 %): decode is bound by weight reading on stage 2 (node_b.gpu0),
//   93 % of its decode time; stages wait for activations on the wire 0.1 % of the time."
std::vector<std::string> Causes(const Result& baseline, const Result& result);

// One sentence for change `index`: what it does to mean TPOT and TTFT, in which bounds if the
// comparison has intervals, and whether that is more than 1 %.
std::string Answer(const Comparison& comparison, int index);

// "node_a.gpu0", "node_a.gpu0+node_a.gpu1", "node_a.gpu0 and 7 more": a stage's GPUs for a reader.
std::string GpusText(const StagePlan& stage);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_METRICS_COMPARISON_H_
