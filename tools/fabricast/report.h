// Results as text.
#ifndef FABRICAST_TOOLS_FABRICAST_REPORT_H_
#define FABRICAST_TOOLS_FABRICAST_REPORT_H_

#include <ostream>

#include "absl/types/span.h"
#include "runtime/metrics/result.pb.h"
#include "runtime/model/model.h"
#include "runtime/plan/plan.h"
#include "topology/topology.h"

namespace fabricast {

// Side by side, a column a result; with two, a third for the change.
void PrintResults(absl::Span<const Result> results, std::ostream& out);

// Changes with their causes, and the break-even.
void PrintConclusions(const Comparison& comparison, std::ostream& out);

// Memory, what the headroom buys, and time of each stage.
void PrintPlan(const Topology& topology, const Model& model, const Plan& plan, std::ostream& out);

// What uneven stages cost in decode, in prefill and for a request of the workload, if there is one,
// and the splits that even it out, by the roofline. `options` made `plan`.
void PrintBalance(const Topology& topology, const Model& model, const PlanOptions& options,
                  const Plan& plan, std::ostream& out);

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_REPORT_H_
