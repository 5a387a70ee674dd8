// What the stages of a plan need of their GPUs' memory, and how many layers they hold.
#ifndef FABRICAST_RUNTIME_PLAN_MEMORY_FIT_H_
#define FABRICAST_RUNTIME_PLAN_MEMORY_FIT_H_

#include <vector>

#include "absl/status/status.h"
#include "runtime/model/model.h"
#include "runtime/plan/plan.h"
#include "topology/topology.h"

namespace fabricast {

// Of each GPU of `stage`, whose layers and GPUs are known.
StageMemory MemoryOf(const Topology& topology, const Model& model, const PlanOptions& options,
                     const Stage& stage);

// Layers that `stage` can hold, whichever they are, with room for a block of KV cache.
int MostLayers(const Topology& topology, const Model& model, const PlanOptions& options,
               const Stage& stage);

// Whether some split gives each stage at least one layer and no more than it holds. `most`: of each
// stage, what MostLayers() says.
bool SomeSplitFits(int layers, const std::vector<int>& most);

// kResourceExhausted for `stages`, some of which lack memory for their `layers`: names the GPU, the
// shortfall and the nearest split that fits, or how many such GPUs it would take.
absl::Status DoesNotFit(const Topology& topology, const Model& model, const PlanOptions& options,
                        const std::vector<Stage>& stages, const std::vector<int>& layers,
                        const std::vector<int>& most);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_PLAN_MEMORY_FIT_H_
