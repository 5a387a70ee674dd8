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
#include "runtime/model/decoder_config.h"
#include "runtime/model/model.h"
#include "runtime/plan/plan.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/weights/checkpoint.h"
#include "tools/fabricast/inputs.h"
#include "topology/topology.h"

namespace fabricast {

// --topology, --set, --model and --threads.
struct HardwareFlags {
  std::string topology = "local_cpu";
  TopologyFlags set;
  std::string model;
  int threads = 0;

  void AddTo(CLI::App& command);
  // One topology, of processors only.
  absl::StatusOr<LabelledTopology> LoadTopology() const;
};

struct RunInputs {
  Topology topology;
  std::vector<std::string> overrides;
  std::string label;
  DecoderConfig config;
  Model model;
  std::shared_ptr<const Checkpoint> checkpoint;
  std::shared_ptr<const Tokenizer> tokenizer;  // null if the checkpoint has none
  Plan plan;                                   // its weights are the checkpoint's
};

// `needs_tokenizer`: fails without one.
absl::StatusOr<RunInputs> LoadRunInputs(const HardwareFlags& hardware, const PlanFlags& plan,
                                        bool needs_tokenizer);

// What head and stages must agree on. A model's covers its configuration and of each tensor name,
// type, shape and first page: enough to tell checkpoints apart without reading them. A topology's
// covers all but addresses, of which a process needs to know its own only.
absl::StatusOr<Fingerprints> FingerprintsOf(const Topology& topology, const Checkpoint& checkpoint);

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_RUN_INPUTS_H_
