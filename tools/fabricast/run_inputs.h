// What computing real tokens needs: hardware, checkpoint and plan, loaded and checked.
#ifndef FABRICAST_TOOLS_FABRICAST_RUN_INPUTS_H_
#define FABRICAST_TOOLS_FABRICAST_RUN_INPUTS_H_

#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/control/protocol.h"
#include "runtime/engine/gpu_pipeline.h"
#include "runtime/model/decoder_config.h"
#include "runtime/model/model.h"
#include "runtime/plan/plan.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/workload/workload.h"
#include "tools/fabricast/inputs.h"
#include "topology/topology.h"

namespace fabricast {

// --topology, --set, --model, --weights and --threads.
struct HardwareFlags {
  std::string topology = "local_cpu";
  TopologyFlags set;
  std::string model;
  bool synthetic = false;  // --weights synthetic
  int threads = 0;

  void AddTo(CLI::App& command);
  // One topology; "local_gpu" is the GPUs of this machine.
  absl::StatusOr<LabelledTopology> LoadTopology() const;
  // The weights, opened.
  absl::StatusOr<WeightSource> LoadWeights() const;
};

struct RunInputs {
  Topology topology;
  std::vector<std::string> overrides;
  std::string label;
  DecoderConfig config;
  Model model;
  WeightSource weights;
  std::shared_ptr<const Tokenizer> tokenizer;  // null if the checkpoint has none
  Plan plan;                                   // its weights are as they will be in memory
  bool on_gpus = false;                        // or on processors
};

// `workload`: what plans that are chosen go by; may be null. `needs_tokenizer`: fails without one.
absl::StatusOr<RunInputs> LoadRunInputs(const HardwareFlags& hardware, const PlanFlags& plan,
                                        const Workload* workload, bool needs_tokenizer);

// Whether its stages are computed on GPUs. kInvalidArgument if some are and some are not.
absl::StatusOr<bool> IsOfGpus(const Topology& topology);

// What head and stages must agree on. A model's covers its configuration and of each tensor name,
// type, shape and first page: enough to tell checkpoints apart without reading them. A topology's
// covers all but addresses, of which a process needs to know its own only.
absl::StatusOr<Fingerprints> FingerprintsOf(const Topology& topology, const HardwareFlags& hardware,
                                            const WeightSource& weights);

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_RUN_INPUTS_H_
