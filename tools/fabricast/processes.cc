#include "tools/fabricast/processes.h"

#include <algorithm>
#include <iostream>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "runtime/control/remote_stages.h"
#include "runtime/control/stage_children.h"
#include "runtime/control/stage_process.h"
#include "runtime/engine/cpu_pipeline.h"
#include "runtime/engine/gpu_pipeline.h"
#include "runtime/launch/local_addresses.h"
#include "runtime/transport/shared_secret.h"
#include "tools/fabricast/interrupt.h"
#include "tools/fabricast/local_gpus.h"

namespace fabricast {
namespace {

constexpr char kLoopback[] = "127.0.0.1";
// Stages end by themselves when the head says goodbye.
constexpr absl::Duration kGrace = absl::Seconds(5);

const Host& HostOf(const Topology& topology, int gpu) {
  const std::string& name = topology.gpus()[gpu].host;
  const auto& hosts = topology.cluster().hosts();
  return *std::find_if(hosts.begin(), hosts.end(),
                       [&](const Host& host) { return host.name() == name; });
}

std::string AddressOf(const Host& host) {
  return host.address().empty() ? kLoopback : host.address();
}

absl::Status RequireLocal(const Host& host, absl::string_view who) {
  absl::StatusOr<bool> local = IsLocalAddress(AddressOf(host));
  if (!local.ok()) return local.status();
  if (*local) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrFormat("%s belongs on %s, whose address in the topology is %s, and this machine has "
                      "no such address: "
                      "start it there, or correct the topology's address or ranks",
                      who, host.name(), host.address()));
}

absl::Status NoAddress(const Topology& topology, const Host& host) {
  return absl::FailedPreconditionError(absl::StrFormat(
      "%s: host %s has no address, and others must reach it: give its IP address, as hosts { name: "
      "\"%s\" address: \"10.0.0.1\" ... } or --set %s.address=10.0.0.1",
      topology.name(), host.name(), host.name(), host.name()));
}

absl::StatusOr<Deployment> DeployUnderLauncher(const Topology& topology, const Plan& plan,
                                               const ProcessFlags& flags, const Place& place) {
  const int stages = static_cast<int>(plan.stages.size());
  const int size = place.size.value_or(stages);
  if (size != stages || place.rank >= stages) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s started %d processes and the plan has %d stages: start %d, or choose --stages %d",
        place.launcher, std::max(size, place.rank + 1), stages, stages, size));
  }
  const Host& host = HostOf(topology, plan.stages[place.rank].gpus[0]);
  const bool here = place.local_size.has_value() && *place.local_size == size;
  if (place.local_size.has_value() && !here && host.address().empty()) {
    return NoAddress(topology, host);
  }
  if (absl::Status status = RequireLocal(host, absl::StrCat("rank ", place.rank)); !status.ok()) {
    return status;
  }
  if (flags.token_file.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "processes that ", place.launcher,
        " starts must prove that they belong together: give all of them the same --token-file, "
        "made with: (umask 077; openssl rand -hex 32 > FILE)"));
  }
  const std::string head_ip = AddressOf(HostOf(topology, plan.stages[0].gpus[0]));
  HostPort head{.host = head_ip, .port = kHeadPort};
  const std::string given = !flags.head.empty() ? flags.head : place.head.value_or("");
  if (!given.empty()) {
    absl::StatusOr<HostPort> parsed = ParseHostPort(given);
    if (!parsed.ok()) return parsed.status();
    head.port = parsed->port.value_or(kHeadPort);
    // What the topology says of hosts is surer than what a launcher does.
    const bool known = here || !HostOf(topology, plan.stages[0].gpus[0]).address().empty();
    if (!flags.head.empty() || !known) head.host = parsed->host;
  }
  Deployment deployment;
  deployment.ip = AddressOf(host);
  if (place.rank == 0) {
    deployment.role = Deployment::Role::kHead;
    deployment.children = {0};
    head.host = head_ip;  // where it listens
  } else {
    deployment.role = Deployment::Role::kStage;
    deployment.stage = place.rank;
  }
  deployment.head = FormatHostPort(head);
  return deployment;
}

}  // namespace

void ProcessFlags::AddTo(CLI::App& command) {
  command.add_option("--head", head,
                     "Where the head is or listens, HOST or HOST:PORT; default: the first stage's "
                     "host in the topology, port 29400");
  command.add_option("--token-file", token_file,
                     "The secret that all processes share: a file that only its owner can read");
  command
      .add_option("--join-timeout", join_timeout_s,
                  "Seconds for all stages to join, at first and after a loss")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option_function<std::string>(
          "--transport", [this](const std::string& which) { tcp = which == "tcp"; },
          "How activations get from GPU to GPU: nccl, or tcp through the processes")
      ->check(CLI::IsMember({"nccl", "tcp"}))
      ->option_text("nccl|tcp");
}

absl::StatusOr<Deployment> Deploy(const Topology& topology, const Plan& plan,
                                  const ProcessFlags& flags, bool processes,
                                  const Environment& environment) {
  absl::StatusOr<std::optional<Place>> place =
      FindPlace(environment, {.rank = std::nullopt, .head = ""});
  if (!place.ok()) return place.status();
  if (place->has_value() && !processes) {
    return DeployUnderLauncher(topology, plan, flags, **place);
  }
  const int stages = static_cast<int>(plan.stages.size());
  Deployment deployment;
  std::set<std::string> hosts;
  for (const Stage& stage : plan.stages) {
    const Host& host = HostOf(topology, stage.gpus[0]);
    if (!host.address().empty()) hosts.insert(host.name());
  }
  const bool several_hosts = hosts.size() > 1;
  // One process may drive several GPUs, but then their activations cross its memory.
  const bool on_gpus = !topology.gpus()[plan.stages[0].gpus[0]].spec.processor();
  processes = processes || (on_gpus && stages > 1 && !several_hosts && !flags.one_process);
  if (!processes && !several_hosts) return deployment;
  deployment.role = Deployment::Role::kHead;
  deployment.ip = kLoopback;
  int port = 0;
  if (!processes) {
    for (const Stage& stage : plan.stages) {
      const Host& host = HostOf(topology, stage.gpus[0]);
      if (host.address().empty()) return NoAddress(topology, host);
    }
    const Host& host = HostOf(topology, plan.stages[0].gpus[0]);
    if (absl::Status status = RequireLocal(host, "the head"); !status.ok()) return status;
    deployment.ip = host.address();
    port = kHeadPort;
  }
  if (!flags.head.empty()) {
    absl::StatusOr<HostPort> parsed = ParseHostPort(flags.head);
    if (!parsed.ok()) return parsed.status();
    port = parsed->port.value_or(port);
  }
  for (int s = 0; s < stages; ++s) {
    const Host& host = HostOf(topology, plan.stages[s].gpus[0]);
    if (processes || AddressOf(host) == deployment.ip) deployment.children.push_back(s);
  }
  if (static_cast<int>(deployment.children.size()) < stages && flags.token_file.empty()) {
    return absl::FailedPreconditionError(
        "stages on other hosts must prove that they belong here: give the head and all of them the "
        "same --token-file, made with: (umask 077; openssl rand -hex 32 > FILE)");
  }
  deployment.head = FormatHostPort({.host = deployment.ip, .port = port});
  return deployment;
}

namespace {

class Processes : public ProcessStages {
 public:
  Processes(std::unique_ptr<RemoteStages> remote) : remote_(std::move(remote)) {}
  ~Processes() override { Stop(); }

  absl::Status StartChildren(StageChildrenOptions options) {
    options.on_end = [this](int stage, absl::string_view how, bool fatal) {
      remote_->ProcessEnded(stage, how, fatal);
    };
    absl::StatusOr<std::unique_ptr<StageChildren>> children =
        StageChildren::Start(std::move(options));
    if (!children.ok()) return children.status();
    children_ = *std::move(children);
    return absl::OkStatus();
  }

  int count() const override { return remote_->count(); }
  void Start(StagesListener& listener) override { remote_->Start(listener); }
  void Launch(int64_t generation, std::shared_ptr<const Step> step) override {
    remote_->Launch(generation, std::move(step));
  }
  void Stop() override {
    remote_->Stop();
    if (children_ != nullptr) children_->LetGo(kGrace);
  }
  std::vector<std::string> Description() const override { return remote_->Description(); }

 private:
  const std::unique_ptr<RemoteStages> remote_;
  std::unique_ptr<StageChildren> children_;
};

std::vector<std::string> ChildArguments(int stage, const std::string& head, const std::string& ip,
                                        const HardwareFlags& hardware, const ProcessFlags& flags) {
  std::vector<std::string> arguments = {"stage",
                                        "--stage",
                                        absl::StrCat(stage),
                                        "--head",
                                        head,
                                        "--ip",
                                        ip,
                                        "--token-file",
                                        StageChildrenOptions::kTokenFile,
                                        "--join-timeout",
                                        absl::StrCat(flags.join_timeout_s),
                                        "--topology",
                                        hardware.topology,
                                        "--model",
                                        hardware.model};
  for (const std::string& set : hardware.set.set) {
    arguments.push_back("--set");
    arguments.push_back(set);
  }
  if (hardware.synthetic) arguments.insert(arguments.end(), {"--weights", "synthetic"});
  return arguments;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ProcessStages>> MakeProcessStages(const RunInputs& inputs,
                                                                 const HardwareFlags& hardware,
                                                                 const ProcessFlags& flags,
                                                                 int threads,
                                                                 const Deployment& deployment) {
  RemoteStagesOptions options;
  if (!flags.token_file.empty()) {
    absl::StatusOr<SharedSecret> secret = SharedSecret::FromFile(flags.token_file);
    if (!secret.ok()) return secret.status();
    options.secret = *std::move(secret);
  }
  absl::StatusOr<HostPort> listen = ParseHostPort(deployment.head);
  if (!listen.ok()) return listen.status();
  absl::StatusOr<Fingerprints> fingerprints =
      FingerprintsOf(inputs.topology, hardware, inputs.weights);
  if (!fingerprints.ok()) return fingerprints.status();
  options.ip = listen->host;
  options.port = listen->port.value_or(0);
  options.fingerprints = *std::move(fingerprints);
  options.join_timeout = absl::Seconds(flags.join_timeout_s);
  for (const Stage& stage : inputs.plan.stages) {
    control::Load load;
    load.set_stages(static_cast<int>(inputs.plan.stages.size()));
    load.set_first_layer(stage.first_layer);
    load.set_num_layers(stage.num_layers);
    load.set_embedding(stage.embedding);
    load.set_lm_head(stage.lm_head);
    load.set_kv_block_tokens(inputs.plan.scheduler.kv_block_tokens);
    load.set_kv_blocks(inputs.plan.scheduler.kv_blocks);
    load.set_threads(threads);
    load.set_max_batch_tokens(inputs.plan.scheduler.max_batch_tokens);
    load.set_max_running(inputs.plan.scheduler.max_running);
    if (inputs.on_gpus) load.mutable_gpus()->Assign(stage.gpus.begin(), stage.gpus.end());
    load.set_nccl(inputs.on_gpus && !flags.tcp);
    options.loads.push_back(load);
    options.names.push_back(StageName(stage, inputs.topology));
  }
  // Children are there at once; of others one wants to know.
  if (deployment.children.size() < inputs.plan.stages.size()) {
    options.log = LogLine;
  }
  absl::StatusOr<std::unique_ptr<RemoteStages>> remote = RemoteStages::Listen(options);
  if (!remote.ok()) return remote.status();
  const std::string head = (*remote)->address();
  auto stages = std::make_unique<Processes>(*std::move(remote));
  StageChildrenOptions children;
  children.stages = deployment.children;
  children.secret = options.secret;
  children.arguments = [head, ip = deployment.ip, hardware, flags](int stage) {
    return ChildArguments(stage, head, ip, hardware, flags);
  };
  if (absl::Status status = stages->StartChildren(std::move(children)); !status.ok()) {
    return status;
  }
  return stages;
}

void UseNcclEnvironment(const Topology& topology, absl::Span<const int> gpus,
                        const std::string& host, std::vector<EnvironmentSetting> settings) {
  for (EnvironmentSetting& setting :
       SetEnvironment(NcclEnvironment(topology, gpus, host, HostNetwork::Read()))) {
    settings.push_back(std::move(setting));
  }
  for (absl::string_view line :
       absl::StrSplit(EnvironmentText(settings), '\n', absl::SkipEmpty())) {
    LogLine(line);
  }
}

void LogLine(absl::string_view line) { std::cerr << absl::StrCat("fabricast: ", line, "\n"); }

absl::Status RunStage(const StageFlags& flags) {
  // Whether its GPUs share the stage it hears when CUDA has begun: the head's environment says
  // more.
  std::vector<EnvironmentSetting> cuda = SetEnvironment(CudaEnvironment(/*shared=*/false));
  absl::StatusOr<LabelledTopology> topology = flags.hardware.LoadTopology();
  if (!topology.ok()) return topology.status();
  StageProcessOptions options;
  options.stage = flags.stage;
  const auto gpus = topology->topology.gpus();
  if (flags.stage >= static_cast<int>(gpus.size())) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--stage: %d, and %s has %d GPUs or processors", flags.stage,
                        topology->label, gpus.size()));
  }
  const Host& host = HostOf(topology->topology, flags.stage);
  options.ip = flags.ip.empty() ? AddressOf(host) : flags.ip;
  if (flags.ip.empty()) {
    if (absl::Status status = RequireLocal(host, absl::StrCat("stage ", flags.stage));
        !status.ok()) {
      return status;
    }
  }
  std::string head = flags.processes.head;
  if (head.empty()) head = AddressOf(HostOf(topology->topology, 0));
  absl::StatusOr<HostPort> address = ParseHostPort(head);
  if (!address.ok()) return address.status();
  address->port = address->port.value_or(kHeadPort);
  options.head = FormatHostPort(*address);
  absl::StatusOr<SharedSecret> secret = SharedSecret::FromFile(flags.processes.token_file);
  if (!secret.ok()) return secret.status();
  options.secret = *std::move(secret);
  options.join_timeout = absl::Seconds(flags.processes.join_timeout_s);
  absl::StatusOr<DecoderConfig> config = LoadDecoderConfig(flags.hardware.model);
  if (!config.ok()) return config.status();
  absl::StatusOr<bool> on_gpus = IsOfGpus(topology->topology);
  if (!on_gpus.ok()) return on_gpus.status();
  absl::StatusOr<WeightSource> weights = flags.hardware.LoadWeights();
  if (!weights.ok()) return weights.status();
  absl::StatusOr<Fingerprints> fingerprints =
      FingerprintsOf(topology->topology, flags.hardware, *weights);
  if (!fingerprints.ok()) return fingerprints.status();
  options.fingerprints = *std::move(fingerprints);
  options.interrupted = &Interrupted();
  if (*on_gpus) {
    std::vector<int> all(gpus.size());
    std::iota(all.begin(), all.end(), 0);
    UseNcclEnvironment(topology->topology, all, host.name(), std::move(cuda));
  }
  const auto figures = std::make_shared<GpuStageFigures>();
  options.describe = [figures] { return figures->Get().Text(); };
  std::vector<int> devices;
  options.load = [&](const control::Load& load) -> absl::StatusOr<std::unique_ptr<StageExecutor>> {
    const StageShare share = {.first_layer = load.first_layer(),
                              .num_layers = load.num_layers(),
                              .embedding = load.embedding(),
                              .lm_head = load.lm_head()};
    const int threads = flags.hardware.threads > 0 ? flags.hardware.threads : load.threads();
    if (!*on_gpus) {
      return MakeCpuStage(*config, weights->checkpoint, share,
                          {.threads = threads,
                           .kv_block_tokens = load.kv_block_tokens(),
                           .kv_blocks = load.kv_blocks()});
    }
    absl::StatusOr<std::vector<FoundGpu>> found = FindGpus();
    if (!found.ok()) return found.status();
    for (const std::string& difference : Differences(topology->topology, load.gpus(), *found)) {
      LogLine(absl::StrCat("warning: ", difference));
    }
    devices = DevicesOf(topology->topology, load.gpus());
    if (load.nccl() && load.stages() > 1) {
      if (absl::Status status = CheckNccl(); !status.ok()) return status;
    }
    return MakeGpuStage(*config, *weights, share,
                        {.devices = devices,
                         .name = absl::StrCat("stage ", flags.stage),
                         .first_layer = load.first_layer(),
                         .kv_block_tokens = load.kv_block_tokens(),
                         .kv_blocks = load.kv_blocks(),
                         .max_batch_tokens = load.max_batch_tokens(),
                         .max_running = load.max_running(),
                         .threads = threads,
                         .log = LogLine,
                         .figures = figures});
  };
  options.join_devices = [&](int stages, std::unique_ptr<StageTransport> joined,
                             absl::Time deadline) {
    return JoinGpuStages(flags.stage, stages, devices[0], std::move(joined), deadline);
  };
  return RunStageProcess(options);
}

}  // namespace fabricast
