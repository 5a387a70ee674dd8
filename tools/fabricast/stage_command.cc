// fabricast stage: computes one stage of a run whose head is another process.

#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/launch/rank.h"
#include "tools/fabricast/commands.h"
#include "tools/fabricast/interrupt.h"
#include "tools/fabricast/processes.h"

namespace fabricast {
namespace {

int RunStageCommand(StageFlags flags) {
  if (flags.stage < 0) {
    absl::StatusOr<std::optional<Place>> place =
        FindPlace(ThisEnvironment(), {.rank = std::nullopt, .head = flags.processes.head});
    if (!place.ok()) return Fail(place.status());
    if (!place->has_value()) {
      return Fail(absl::InvalidArgumentError(
          "give --stage N: no launcher has said which stage this process is"));
    }
    flags.stage = (*place)->rank;
    if (flags.processes.head.empty()) flags.processes.head = (*place)->head.value_or("");
  }
  if (flags.processes.token_file.empty()) {
    return Fail(absl::InvalidArgumentError(
        "give --token-file, the same as the head's: without it no stage is let in"));
  }
  const absl::Status status = RunStage(flags);
  if (status.ok()) return 0;
  Fail(status);
  return absl::IsCancelled(status) ? kExitInterrupted : 1;
}

}  // namespace

void AddStageCommand(CLI::App& app, int& exit_status) {
  CLI::App* command = app.add_subcommand(
      "stage", "Compute one stage of a pipeline whose head is a `fabricast run` elsewhere");
  command->footer(
      "Examples:\n"
      "  fabricast stage --stage 2 --topology two_hosts.txtpb --model ~/Llama-3.2-1B-Instruct \\\n"
      "      --token-file token --head 10.0.0.1");
  auto flags = std::make_shared<StageFlags>();
  command
      ->add_option(
          "--stage", flags->stage,
          "Which, from 0; default: the rank that mpirun, srun, torchrun or Kubernetes gave")
      ->check(CLI::NonNegativeNumber);
  flags->hardware.AddTo(*command);
  command->add_option(
      "--ip", flags->ip,
      "Listen at this address of this machine; default: that of the host in the topology that has "
      "GPU number N; give it where stages have several GPUs");
  flags->processes.AddTo(*command);
  command->callback([=, &exit_status] { exit_status = RunStageCommand(*flags); });
}

}  // namespace fabricast
