#include "tools/fabricast/run_inputs.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/engine/cpu_pipeline.h"
#include "runtime/transport/shared_secret.h"

namespace fabricast {

void HardwareFlags::AddTo(CLI::App& command) {
  command.add_option("--topology", topology, "A cluster file or a bundled cluster's name")
      ->capture_default_str();
  set.AddTo(command);
  command
      .add_option("--model", model,
                  "A checkpoint folder of Hugging Face: config.json, safetensors, tokenizer.json")
      ->required();
  command.add_option("--threads", threads,
                     "A stage; default: the processor's, divided among stages");
}

absl::StatusOr<LabelledTopology> HardwareFlags::LoadTopology() const {
  absl::StatusOr<std::vector<LabelledTopology>> topologies = LoadTopologies({topology}, set);
  if (!topologies.ok()) return topologies.status();
  if (topologies->size() != 1) {
    return absl::InvalidArgumentError("--set gives several topologies: a run has one");
  }
  for (const GpuNode& gpu : topologies->front().topology.gpus()) {
    if (gpu.spec.processor()) continue;
    return absl::UnimplementedError(absl::StrCat(
        topologies->front().label, ": ", gpu.name, " is a ", gpu.spec.name(),
        ", and only processors compute so far: use --topology local_cpu, or `fabricast simulate`"));
  }
  return std::move(topologies->front());
}

absl::StatusOr<RunInputs> LoadRunInputs(const HardwareFlags& hardware, const PlanFlags& plan_flags,
                                        bool needs_tokenizer) {
  absl::StatusOr<LabelledTopology> topology = hardware.LoadTopology();
  if (!topology.ok()) return topology.status();
  absl::StatusOr<PlanOptions> plan_options = plan_flags.Options();
  if (!plan_options.ok()) return plan_options.status();
  absl::StatusOr<DecoderConfig> config = LoadDecoderConfig(hardware.model);
  if (!config.ok()) return config.status();
  absl::StatusOr<std::shared_ptr<const Checkpoint>> checkpoint = Checkpoint::Open(hardware.model);
  if (!checkpoint.ok()) return checkpoint.status();
  // Memory is counted from the checkpoint below, whatever the dtype that the config names.
  absl::StatusOr<Model> model = LoadModel(hardware.model, config->awq.has_value() ? "" : "bf16");
  if (!model.ok()) return model.status();
  std::shared_ptr<const Tokenizer> tokenizer;
  if (absl::StatusOr<std::shared_ptr<const Tokenizer>> loaded = Tokenizer::Load(hardware.model);
      loaded.ok()) {
    tokenizer = *std::move(loaded);
  } else if (needs_tokenizer || !absl::IsNotFound(loaded.status())) {
    return loaded.status();
  }
  absl::StatusOr<Plan> plan = MakePlan(topology->topology, *model, *plan_options);
  if (!plan.ok()) return plan.status();
  if (absl::Status status = CountStageWeights(*config, *checkpoint, *plan); !status.ok()) {
    return status;
  }
  return RunInputs{.topology = std::move(topology->topology),
                   .overrides = std::move(topology->overrides),
                   .label = std::move(topology->label),
                   .config = *std::move(config),
                   .model = *std::move(model),
                   .checkpoint = *std::move(checkpoint),
                   .tokenizer = std::move(tokenizer),
                   .plan = *std::move(plan)};
}

absl::StatusOr<Fingerprints> FingerprintsOf(const Topology& topology,
                                            const Checkpoint& checkpoint) {
  constexpr size_t kPage = 4096;
  const std::string config_file = checkpoint.folder() + "/config.json";
  std::ifstream in(config_file, std::ios::binary);
  std::ostringstream model;
  model << in.rdbuf();
  if (!in) return absl::NotFoundError(absl::StrCat(config_file, ": cannot be read"));
  for (const Tensor* const tensor : checkpoint.tensors()) {
    const absl::Span<const std::byte> page = tensor->bytes.subspan(0, kPage);
    model << '\0' << tensor->name << '\0' << DTypeName(tensor->dtype) << '\0'
          << absl::StrJoin(tensor->shape, ",") << '\0';
    model.write(reinterpret_cast<const char*>(page.data()),
                static_cast<std::streamsize>(page.size()));
    checkpoint.Release(*tensor);
  }
  Cluster cluster = topology.cluster();
  for (Host& host : *cluster.mutable_hosts()) host.clear_address();
  return Fingerprints{{"model", Sha256Hex(model.str())},
                      {"topology", Sha256Hex(cluster.SerializeAsString())}};
}

}  // namespace fabricast
