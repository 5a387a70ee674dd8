// The stages of a pipeline in this process: a thread each, joined by loopback.
#ifndef FABRICAST_RUNTIME_ENGINE_LOCAL_STAGES_H_
#define FABRICAST_RUNTIME_ENGINE_LOCAL_STAGES_H_

#include <memory>
#include <vector>

#include "runtime/engine/stages.h"
#include "runtime/executor/stage_executor.h"

namespace fabricast {

// One executor a stage, in order; at least one. They are ready when started. When one fails the
// generation is lost; all executors are Reset, and the next generation is ready once the others
// have done what they computed. Gone if one of them is of no use any more.
std::unique_ptr<Stages> MakeLocalStages(std::vector<std::unique_ptr<StageExecutor>> executors);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_ENGINE_LOCAL_STAGES_H_
