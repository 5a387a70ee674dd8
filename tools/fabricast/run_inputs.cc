#include "tools/fabricast/run_inputs.h"

#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/engine/cpu_pipeline.h"
#include "runtime/model/catalogue.h"
#include "runtime/transport/shared_secret.h"
#include "tools/fabricast/local_gpus.h"

namespace fabricast {

void HardwareFlags::AddTo(CLI::App& command) {
  command
      .add_option("--topology", topology,
                  "A cluster file or a bundled cluster's name; local_gpu: this machine's GPUs")
      ->capture_default_str();
  set.AddTo(command);
  command
      .add_option("--model", model,
                  "A checkpoint folder of Hugging Face: config.json, safetensors, tokenizer.json; "
                  "of synthetic weights also a bundled model (`fabricast models`)")
      ->required();
  command
      .add_option_function<std::string>(
          "--weights", [this](const std::string& which) { synthetic = which == "synthetic"; },
          "Those of the checkpoint, or synthetic: made up on the GPU, in the shapes of config.json "
          "alone")
      ->check(CLI::IsMember({"checkpoint", "synthetic"}))
      ->option_text("checkpoint|synthetic");
  command.add_option("--threads", threads,
                     "A stage; default: the processor's, divided among stages");
}

absl::StatusOr<LabelledTopology> HardwareFlags::LoadTopology() const {
  if (topology == kLocalGpu) {
    std::vector<Override> overrides;
    for (const std::string& text : set.set) {
      absl::StatusOr<Override> parsed = ParseOverride(text);
      if (!parsed.ok()) return parsed.status();
      overrides.push_back(*std::move(parsed));
    }
    absl::StatusOr<std::vector<FoundGpu>> gpus = FindGpus();
    if (!gpus.ok()) return gpus.status();
    absl::StatusOr<Cluster> cluster = LocalGpuCluster(*gpus);
    if (!cluster.ok()) return cluster.status();
    absl::StatusOr<Topology> local = Topology::Create(kLocalGpu, *cluster, overrides);
    if (!local.ok()) return local.status();
    return LabelledTopology{kLocalGpu, *std::move(local), set.set};
  }
  absl::StatusOr<std::vector<LabelledTopology>> topologies = LoadTopologies({topology}, set);
  if (!topologies.ok()) return topologies.status();
  if (topologies->size() != 1) {
    return absl::InvalidArgumentError("--set gives several topologies: a run has one");
  }
  return std::move(topologies->front());
}

absl::StatusOr<WeightSource> HardwareFlags::LoadWeights() const {
  WeightSource source;
  if (synthetic) return source;
  absl::StatusOr<std::shared_ptr<const Checkpoint>> checkpoint = Checkpoint::Open(model);
  if (!checkpoint.ok()) return checkpoint.status();
  source.checkpoint = *std::move(checkpoint);
  return source;
}

absl::StatusOr<bool> IsOfGpus(const Topology& topology) {
  const GpuNode& first = topology.gpus()[0];
  for (const GpuNode& other : topology.gpus()) {
    if (other.spec.processor() == first.spec.processor()) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        topology.name(), ": ", first.name, " is a ", first.spec.name(), ", and ", other.name, " a ",
        other.spec.name(), ": a run is on GPUs or on processors: leave some out of `ranks`"));
  }
  return !first.spec.processor();
}

absl::StatusOr<RunInputs> LoadRunInputs(const HardwareFlags& hardware, const PlanFlags& plan_flags,
                                        const Workload* workload, bool needs_tokenizer) {
  absl::StatusOr<LabelledTopology> topology = hardware.LoadTopology();
  if (!topology.ok()) return topology.status();
  absl::StatusOr<PlanOptions> plan_options = plan_flags.Options(workload);
  if (!plan_options.ok()) return plan_options.status();
  absl::StatusOr<DecoderConfig> config = LoadDecoderConfig(hardware.model);
  if (!config.ok()) return config.status();
  absl::StatusOr<bool> on_gpus = IsOfGpus(topology->topology);
  if (!on_gpus.ok()) return on_gpus.status();
  if (hardware.synthetic && !*on_gpus) {
    return absl::UnimplementedError(
        "--weights synthetic is for GPUs: use --topology local_gpu, or a checkpoint");
  }
  absl::StatusOr<WeightSource> weights = hardware.LoadWeights();
  if (!weights.ok()) return weights.status();
  // Memory is counted from the checkpoint below, whatever the dtype that the config names.
  absl::StatusOr<Model> model = LoadModel(hardware.model, config->awq.has_value() ? "" : "bf16");
  if (!model.ok()) return model.status();
  std::shared_ptr<const Tokenizer> tokenizer;
  if (CatalogueConfig(hardware.model).has_value()) {
    if (needs_tokenizer) {
      return absl::InvalidArgumentError(
          absl::StrCat(hardware.model,
                       ": a bundled model has no tokenizer: give a --workload, or "
                       "the folder of a checkpoint"));
    }
  } else if (absl::StatusOr<std::shared_ptr<const Tokenizer>> loaded =
                 Tokenizer::Load(hardware.model);
             loaded.ok()) {
    tokenizer = *std::move(loaded);
  } else if (needs_tokenizer || !absl::IsNotFound(loaded.status())) {
    return loaded.status();
  }
  absl::StatusOr<Plan> plan = MakePlan(topology->topology, *model, *plan_options);
  if (!plan.ok()) return plan.status();
  absl::Status counted = *on_gpus ? CountGpuStageWeights(*config, *weights, *plan)
                                  : CountStageWeights(*config, weights->checkpoint, *plan);
  if (!counted.ok()) return counted;
  return RunInputs{.topology = std::move(topology->topology),
                   .overrides = std::move(topology->overrides),
                   .label = std::move(topology->label),
                   .config = *std::move(config),
                   .model = *std::move(model),
                   .weights = *std::move(weights),
                   .tokenizer = std::move(tokenizer),
                   .plan = *std::move(plan),
                   .on_gpus = *on_gpus};
}

absl::StatusOr<Fingerprints> FingerprintsOf(const Topology& topology, const HardwareFlags& hardware,
                                            const WeightSource& weights) {
  constexpr size_t kPage = 4096;
  std::ostringstream model;
  if (const auto bundled = CatalogueConfig(hardware.model); bundled.has_value()) {
    model << *bundled;
  } else {
    const std::string config_file = hardware.model + "/config.json";
    std::ifstream in(config_file, std::ios::binary);
    model << in.rdbuf();
    if (!in) return absl::NotFoundError(absl::StrCat(config_file, ": cannot be read"));
  }
  std::vector<const Tensor*> tensors;
  if (weights.checkpoint != nullptr) tensors = weights.checkpoint->tensors();
  for (const Tensor* const tensor : tensors) {
    const absl::Span<const std::byte> page = tensor->bytes.subspan(0, kPage);
    model << '\0' << tensor->name << '\0' << DTypeName(tensor->dtype) << '\0'
          << absl::StrJoin(tensor->shape, ",") << '\0';
    model.write(reinterpret_cast<const char*>(page.data()),
                static_cast<std::streamsize>(page.size()));
    weights.checkpoint->Release(*tensor);
  }
  Cluster cluster = topology.cluster();
  for (Host& host : *cluster.mutable_hosts()) host.clear_address();
  return Fingerprints{{"model", Sha256Hex(model.str())},
                      {"topology", Sha256Hex(cluster.SerializeAsString())}};
}

}  // namespace fabricast
