// Runs whose stages are processes: which of them this one is, where the head is, and the flags that
// say so.
#ifndef FABRICAST_TOOLS_FABRICAST_PROCESSES_H_
#define FABRICAST_TOOLS_FABRICAST_PROCESSES_H_

#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/engine/stages.h"
#include "runtime/launch/rank.h"
#include "runtime/plan/plan.h"
#include "runtime/transport/nccl_environment.h"
#include "tools/fabricast/run_inputs.h"
#include "topology/topology.h"

namespace fabricast {

// The head's port where others must find it without being told.
inline constexpr int kHeadPort = 29400;

struct ProcessFlags {
  std::string head;        // HOST or HOST:PORT; empty: from the launcher or the topology
  std::string token_file;  // the shared secret
  double join_timeout_s = 60;
  bool tcp = false;  // activations of GPUs go by TCP, not by NCCL
  bool one_process = false;

  void AddTo(CLI::App& command);
};

// How a run is spread over processes.
struct Deployment {
  enum class Role {
    kOneProcess,  // stages are threads
    kHead,        // of stages that are processes
    kStage,       // one of them
  };
  Role role = Role::kOneProcess;
  int stage = -1;             // kStage
  std::vector<int> children;  // kHead: the stages that it starts itself
  std::string ip;             // that this process listens at
  std::string head;           // kStage: where the head is; kHead: where it listens, "IP:PORT"
};

// From what started this process (`environment`), the topology and flags. `processes`: the user
// asks for a process a stage, all on this machine; several stages on GPUs are, too, unless
// flags.one_process. Errors name what does not fit: a launcher's
// processes and the plan's stages, a host of the topology and this machine, a missing token.
absl::StatusOr<Deployment> Deploy(const Topology& topology, const Plan& plan,
                                  const ProcessFlags& flags, bool processes,
                                  const Environment& environment);

// Stages that are processes.
class ProcessStages : public Stages {
 public:
  // Where they run and how well their clocks are known, a line each.
  virtual std::vector<std::string> Description() const = 0;
};

// Listens for the stages, and starts `deployment.children` with `hardware`'s flags.
absl::StatusOr<std::unique_ptr<ProcessStages>> MakeProcessStages(const RunInputs& inputs,
                                                                 const HardwareFlags& hardware,
                                                                 const ProcessFlags& flags,
                                                                 int threads,
                                                                 const Deployment& deployment);

// Sets what NCCL needs of the environment for a pipeline on `gpus` (indices into the topology), for
// a process on `host`, and prints it and `cuda`, which was set before CUDA's first call
// (CudaEnvironment). Before there are threads.
void UseNcclEnvironment(const Topology& topology, absl::Span<const int> gpus,
                        const std::string& host, std::vector<EnvironmentSetting> cuda);

// To standard error, as "fabricast: LINE".
void LogLine(absl::string_view line);

struct StageFlags {
  HardwareFlags hardware;
  ProcessFlags processes;
  int stage = -1;  // -1: as the launcher says
  std::string ip;  // empty: its host's in the topology
};

// Computes a stage until the head lets it go. A stage does not plan: the head tells it its share.
absl::Status RunStage(const StageFlags& flags);

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_PROCESSES_H_
