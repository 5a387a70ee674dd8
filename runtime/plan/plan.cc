#include "runtime/plan/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "runtime/check.h"
#include "runtime/cost/communication_cost.h"

namespace fabricast {
namespace {

constexpr double kGb = 1e9;
// Batches by which stages are balanced: one token of each of 8 requests at a middling context; one
// full chunk of a prompt's middle.
constexpr int64_t kBalanceRequests = 8;
constexpr int64_t kBalanceContext = 2048;

// Widest activations of a step, a token: input, residual, normed input and output, the widest pair
// of consecutive matrix products, of which both sides live at once. Of routed experts both sides
// are there once for each expert that the token goes through, but for the input of the first.
int64_t ActivationBytesPerToken(const Model& model, int tp) {
  int64_t widest = 0;
  for (const LayerKind& kind : model.kinds) {
    int64_t layer = 0;
    for (const Operator& op : kind.operators) {
      if (const auto* linear = std::get_if<LinearOp>(&op)) {
        layer = std::max(layer, model.activation_bytes * (linear->in + linear->out) / tp);
      }
      if (const auto* experts = std::get_if<RoutedExpertsOp>(&op)) {
        const int64_t gate_up = experts->in + experts->per_token * 2 * experts->ffn;
        const int64_t down = experts->per_token * (experts->ffn + experts->in);
        layer = std::max(layer, model.activation_bytes * std::max(gate_up, down) / tp);
      }
    }
    widest = std::max(widest, layer);
  }
  return 4 * model.boundary_bytes_per_token() + widest;
}

StageMemory MemoryOf(const Topology& topology, const Model& model, const PlanOptions& options,
                     const Stage& stage) {
  const int tp = options.tensor_parallel;
  StageMemory memory;
  double capacity_gb = std::numeric_limits<double>::infinity();
  for (int gpu : stage.gpus) {
    capacity_gb = std::min(capacity_gb, topology.gpus()[gpu].spec.memory_gb());
  }
  memory.capacity = static_cast<int64_t>(capacity_gb * kGb);
  for (int i = 0; i < stage.num_layers; ++i) {
    const LayerKind& layer = model.layer(stage.first_layer + i);
    memory.weights += layer.weight_bytes() / tp;
    // Fewer KV heads than GPUs: each GPU holds a copy of the head that it needs.
    for (const Operator& op : layer.operators) {
      if (const auto* attention = std::get_if<AttentionOp>(&op)) {
        const int64_t kv_heads = std::max<int64_t>(1, attention->kv_heads / tp);
        memory.kv_bytes_per_token +=
            2 * kv_heads * attention->head_dim * attention->kv_bytes_per_element;
      }
    }
  }
  if (stage.embedding) memory.weights += model.embedding_bytes / tp;
  // Tied embeddings on one stage are one table.
  if (stage.lm_head && !(model.tied_embeddings && stage.embedding)) {
    memory.weights += model.lm_head_bytes / tp;
  }
  if (stage.lm_head) memory.weights += 2 * model.final_norm_elements;
  memory.activations = options.max_batch_tokens * ActivationBytesPerToken(model, tp);
  // Logits in FP32, a row for each request of a micro-batch that samples.
  if (stage.lm_head) {
    memory.activations += std::min<int64_t>(options.max_running, options.max_batch_tokens) *
                          model.vocabulary * 4 / tp;
  }
  memory.reserve = static_cast<int64_t>(options.reserve_gb * kGb);
  return memory;
}

// Numbers outside these bounds are slips, and would overflow bytes further on. The scheduler has
// rules of its own.
absl::Status CheckRanges(const PlanOptions& options) {
  struct Range {
    absl::string_view name;
    double value;
    double low;
    double high;
  };
  const Range ranges[] = {
      {"--stages", static_cast<double>(options.stages), 0, 100'000},
      {"--reserve-gb", options.reserve_gb, 0, 100'000},
      {"--max-in-flight", static_cast<double>(options.max_in_flight), 0, 100'000},
      {"--max-batch-tokens", static_cast<double>(options.max_batch_tokens), 1, 10'000'000},
      {"--chunk-tokens", static_cast<double>(options.max_chunk_tokens), 1, 10'000'000},
      {"--max-running", static_cast<double>(options.max_running), 1, 10'000'000},
      {"--kv-block-tokens", static_cast<double>(options.kv_block_tokens), 1, 1'000'000},
      {"--kv-blocks", static_cast<double>(options.kv_blocks), 0, 1e12},
  };
  for (const Range& range : ranges) {
    // Written so that NaN is outside.
    if (range.value >= range.low && range.value <= range.high) continue;
    return absl::InvalidArgumentError(absl::StrFormat("%s %g: must be from %g to %g", range.name,
                                                      range.value, range.low, range.high));
  }
  return absl::OkStatus();
}

// Stages with their GPUs, before layers are known.
absl::StatusOr<std::vector<Stage>> GroupGpus(const Topology& topology, const PlanOptions& options) {
  const int num_gpus = static_cast<int>(topology.gpus().size());
  const int tp = options.tensor_parallel;
  if (tp < 1 || tp > num_gpus) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tensor parallelism over %d GPUs, %s has %d: use 1 to %d", tp,
                        topology.name(), num_gpus, num_gpus));
  }
  const int stages = options.stages > 0 ? options.stages : num_gpus / tp;
  if (stages * tp > num_gpus) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%d stages of %d GPUs need %d, %s has %d: use at most %d stages", options.stages, tp,
        options.stages * tp, topology.name(), num_gpus, num_gpus / tp));
  }
  std::vector<Stage> result(stages);
  for (int s = 0; s < stages; ++s) {
    for (int i = 0; i < tp; ++i) result[s].gpus.push_back(s * tp + i);
    const GpuNode& first = topology.gpus()[result[s].gpus.front()];
    for (int gpu : result[s].gpus) {
      if (topology.gpus()[gpu].host == first.host) continue;
      return absl::InvalidArgumentError(
          absl::StrFormat("stage %d would split its layers over %s and %s, which are in two hosts: "
                          "tensor parallelism sends two "
                          "all-reduces a layer and stays inside a host; choose a size that divides "
                          "the GPUs of every host, or "
                          "reorder `ranks`",
                          s, first.name, topology.gpus()[gpu].name));
    }
  }
  result.front().embedding = true;
  result.back().lm_head = true;
  return result;
}

void AssignLayers(std::vector<Stage>& stages, const std::vector<int>& layers) {
  int next = 0;
  for (size_t s = 0; s < stages.size(); ++s) {
    stages[s].first_layer = next;
    stages[s].num_layers = layers[s];
    next += layers[s];
  }
}

std::vector<int> EvenLayers(int layers, int stages) {
  std::vector<int> result(stages, layers / stages);
  for (int s = 0; s < layers % stages; ++s) ++result[s];
  return result;
}

// `model` with the heaviest of its layers in place of all; most models have one kind of layer.
Model WithHeaviestLayers(const Model& model) {
  Model result = model;
  if (model.kinds.size() < 2) return result;
  const auto heaviest = std::max_element(
      model.kinds.begin(), model.kinds.end(),
      [](const LayerKind& a, const LayerKind& b) { return a.weight_bytes() < b.weight_bytes(); });
  const int index = static_cast<int>(heaviest - model.kinds.begin());
  std::fill(result.layers.begin(), result.layers.end(), index);
  return result;
}

// Layers that `stage` can hold, whichever they are, with room for a block of KV cache.
int MostLayers(const Topology& topology, const Model& given, const PlanOptions& options,
               const Stage& stage) {
  const Model model = WithHeaviestLayers(given);
  int fits = 0;
  Stage trial = stage;
  trial.first_layer = 0;
  for (int n = 0; n <= model.num_layers(); ++n) {
    trial.num_layers = n;
    const StageMemory memory = MemoryOf(topology, model, options, trial);
    if (memory.left() < memory.kv_bytes_per_token * options.kv_block_tokens) break;
    fits = n;
  }
  return fits;
}

// Whether some split gives each stage at least one layer and no more than it holds.
bool SomeSplitFits(int layers, const std::vector<int>& most) {
  return *std::min_element(most.begin(), most.end()) >= 1 &&
         std::accumulate(most.begin(), most.end(), 0) >= layers;
}

// Moves layers from stages that hold more than they can to those with room, nearest first. Nothing
// if no split fits.
std::optional<std::vector<int>> NearestFit(std::vector<int> layers, const std::vector<int>& most) {
  const int n = static_cast<int>(layers.size());
  if (!SomeSplitFits(std::accumulate(layers.begin(), layers.end(), 0), most)) return std::nullopt;
  for (int s = 0; s < n; ++s) {
    for (int distance = 1; distance < n && layers[s] > most[s]; ++distance) {
      for (int other : {s - distance, s + distance}) {
        if (other < 0 || other >= n) continue;
        const int moved =
            std::clamp(most[other] - layers[other], 0, std::max(0, layers[s] - most[s]));
        layers[other] += moved;
        layers[s] -= moved;
      }
    }
  }
  return layers;
}

// How many stages like `stage` would hold the model, the embedding on the first of them and lm_head
// on the last; 0 if no number would.
int StagesNeeded(const Topology& topology, const Model& model, const PlanOptions& options,
                 Stage stage) {
  const auto most = [&](bool embedding, bool lm_head) {
    stage.embedding = embedding;
    stage.lm_head = lm_head;
    return MostLayers(topology, model, options, stage);
  };
  if (most(true, true) >= model.num_layers()) return 1;
  const int first = most(true, false);
  const int inner = most(false, false);
  const int last = most(false, true);
  if (first < 1 || last < 1) return 0;
  const int rest = std::max(0, model.num_layers() - first - last);
  return 2 + (rest + inner - 1) / inner;
}

// Least maximum over stages of seconds(stage, layers), within `most` and with at least one layer a
// stage: adds layers one by one to the stage that ends up fastest. Optimal since seconds grow with
// layers.
std::vector<int> Balance(int layers, const std::vector<int>& most,
                         const std::function<double(int stage, int layers)>& seconds) {
  const int n = static_cast<int>(most.size());
  std::vector<int> result(n, 1);
  for (int placed = n; placed < layers; ++placed) {
    int best = -1;
    double best_s = std::numeric_limits<double>::infinity();
    for (int s = 0; s < n; ++s) {
      if (result[s] >= most[s]) continue;
      const double after = seconds(s, result[s] + 1);
      if (after < best_s) {
        best_s = after;
        best = s;
      }
    }
    FABRICAST_CHECK(best >= 0) << "balancing " << layers << " layers that do not fit";
    ++result[best];
  }
  return result;
}

std::string LayersText(const std::vector<int>& layers) { return absl::StrJoin(layers, ","); }

absl::Status DoesNotFit(const Topology& topology, const Model& model, const PlanOptions& options,
                        const std::vector<Stage>& stages, const std::vector<int>& layers,
                        const std::vector<int>& most) {
  std::string message;
  for (const Stage& stage : stages) {
    const int64_t needed = stage.memory.kv_bytes_per_token * options.kv_block_tokens;
    const int64_t missing = needed - stage.memory.left();
    if (missing <= 0) continue;
    absl::StrAppendFormat(&message,
                          "%s%s: %d layers need %.1f GB (weights %.1f, activations %.1f, reserve "
                          "%.1f), it has %.1f: %.1f GB short",
                          message.empty() ? "" : "; ", StageName(stage, topology), stage.num_layers,
                          (stage.memory.capacity + missing) / kGb, stage.memory.weights / kGb,
                          stage.memory.activations / kGb, stage.memory.reserve / kGb,
                          stage.memory.capacity / kGb, missing / kGb);
  }
  message = absl::StrCat(model.name, " with split ", LayersText(layers), " does not fit ",
                         topology.name(), ". ", message, ". ");
  if (std::optional<std::vector<int>> near = NearestFit(layers, most)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(message, "The nearest that fits: --split ", LayersText(*near)));
  }
  const int fit = std::accumulate(most.begin(), most.end(), 0);
  if (fit >= model.num_layers()) {
    const auto none = std::min_element(most.begin(), most.end());
    return absl::ResourceExhaustedError(
        absl::StrCat(message, "No split fits: ", StageName(stages[none - most.begin()], topology),
                     " has no room for a single layer; leave it out of `ranks`"));
  }
  absl::StrAppend(&message, "No split fits: the stages hold ", fit, " of ", model.num_layers(),
                  " layers.");
  int stages_needed = 0;
  for (const Stage& stage : stages) {
    const int needed = StagesNeeded(topology, model, options, stage);
    if (needed > 0 && (stages_needed == 0 || needed < stages_needed)) stages_needed = needed;
  }
  if (stages_needed > 0) {
    absl::StrAppend(&message, " It takes ", stages_needed * options.tensor_parallel, " such GPUs");
    absl::StrAppend(&message, model.layer_format == WeightFormat::kInt4Group128
                                  ? "."
                                  : ", or a smaller weight format: --quantization int4.");
  }
  return absl::ResourceExhaustedError(message);
}

absl::Status CheckGivenLayers(const PlanOptions& options, const Model& model, size_t stages) {
  if (options.layers.size() != stages) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--split %s gives %d stages, the plan has %d: give one number a stage",
                        LayersText(options.layers), options.layers.size(), stages));
  }
  int sum = 0;
  for (int layers : options.layers) {
    if (layers < 1) {
      return absl::InvalidArgumentError(absl::StrCat("--split ", LayersText(options.layers),
                                                     ": a stage needs at least one layer"));
    }
    sum += layers;
  }
  if (sum != model.num_layers()) {
    return absl::InvalidArgumentError(absl::StrFormat("--split %s adds up to %d, %s has %d layers",
                                                      LayersText(options.layers), sum, model.name,
                                                      model.num_layers()));
  }
  return absl::OkStatus();
}

double SustainedTflops(const GpuSpec& gpu) {
  return gpu.bf16_tflops() *
         (gpu.has_sustained_compute_fraction() ? gpu.sustained_compute_fraction() : 1);
}

StageCost CostOf(const Topology& topology, const Model& model, int tp, const Stage& stage) {
  // The group waits for its slowest GPU, in reading and in computing.
  int slowest = stage.gpus.front();
  for (int gpu : stage.gpus) {
    if (topology.gpus()[gpu].spec.memory_bandwidth_gb_s() <
        topology.gpus()[slowest].spec.memory_bandwidth_gb_s()) {
      slowest = gpu;
    }
  }
  GpuSpec spec = topology.gpus()[slowest].spec;
  for (int gpu : stage.gpus) {
    const GpuSpec& other = topology.gpus()[gpu].spec;
    if (SustainedTflops(other) >= SustainedTflops(spec)) continue;
    spec.set_bf16_tflops(SustainedTflops(other));
    spec.clear_sustained_compute_fraction();
  }
  StageCostOptions options{.first_layer = stage.first_layer,
                           .num_layers = stage.num_layers,
                           .embedding = stage.embedding,
                           .lm_head = stage.lm_head,
                           .tensor_parallel = tp};
  if (tp > 1) {
    options.all_reduce = [topology, gpus = stage.gpus](double bytes) {
      absl::StatusOr<double> seconds =
          LoneCollectiveSeconds(topology, COLLECTIVE_OP_ALL_REDUCE, gpus, bytes);
      FABRICAST_CHECK(seconds.ok()) << seconds.status();
      return *seconds;
    };
  }
  return StageCost(model, spec, topology.kernels(slowest), std::move(options));
}

int64_t ActivationBytes(const GpuNode& gpu) {
  return gpu.spec.has_activation_bytes() ? gpu.spec.activation_bytes() : 2;
}

// Of all stages; an error if they differ, since a stage passes on what it has.
absl::StatusOr<int64_t> CommonActivationBytes(const Topology& topology,
                                              const std::vector<Stage>& stages) {
  const GpuNode& first = topology.gpus()[stages.front().gpus.front()];
  for (const Stage& stage : stages) {
    for (int gpu : stage.gpus) {
      const GpuNode& other = topology.gpus()[gpu];
      if (ActivationBytes(other) == ActivationBytes(first)) continue;
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s: activations are %d bytes an element on %s (%s) and %d on %s (%s), and stages pass "
          "them on as they are: leave processors or GPUs out of `ranks`",
          topology.name(), ActivationBytes(first), first.name, first.spec.name(),
          ActivationBytes(other), other.name, other.spec.name()));
    }
  }
  return ActivationBytes(first);
}

absl::Status CheckPrices(const Topology& topology, const Model& model,
                         const std::vector<Stage>& stages) {
  for (const Stage& stage : stages) {
    for (int gpu : stage.gpus) {
      if (absl::Status status = CheckCalibration(model, topology.kernels(gpu)); !status.ok()) {
        return status;
      }
    }
    if (stage.gpus.size() > 1) {
      absl::StatusOr<double> seconds =
          LoneCollectiveSeconds(topology, COLLECTIVE_OP_ALL_REDUCE, stage.gpus, 1e6);
      if (!seconds.ok()) return seconds.status();
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ParseSplit(absl::string_view text, PlanOptions& options) {
  if (text == "even") {
    options.split = Split::kEven;
  } else if (text == "balanced" || text == "balanced-decode") {
    options.split = Split::kBalancedDecode;
  } else if (text == "balanced-prefill") {
    options.split = Split::kBalancedPrefill;
  } else {
    options.split = Split::kGiven;
    options.layers.clear();
    for (absl::string_view part : absl::StrSplit(text, ',')) {
      int layers = 0;
      if (!absl::SimpleAtoi(part, &layers)) {
        return absl::InvalidArgumentError(
            absl::StrCat("--split '", text,
                         "': use even, balanced, balanced-decode, balanced-prefill or layers a "
                         "stage such as 42,42,42"));
      }
      options.layers.push_back(layers);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Plan> MakePlan(const Topology& topology, const Model& given,
                              const PlanOptions& options) {
  // Whether the model can be divided at all is the more useful answer, so it comes first.
  if (absl::Status status = given.CheckTensorParallel(options.tensor_parallel); !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckRanges(options); !status.ok()) return status;
  absl::StatusOr<std::vector<Stage>> stages = GroupGpus(topology, options);
  if (!stages.ok()) return stages.status();
  const absl::StatusOr<int64_t> activation_bytes = CommonActivationBytes(topology, *stages);
  if (!activation_bytes.ok()) return activation_bytes.status();
  const Model model = WithActivationBytes(given, *activation_bytes);
  const int num_stages = static_cast<int>(stages->size());
  if (num_stages > model.num_layers()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%d stages for the %d layers of %s: a stage needs at least one; use --stages", num_stages,
        model.num_layers(), model.name));
  }
  if (absl::Status status = CheckPrices(topology, model, *stages); !status.ok()) return status;

  std::vector<int> most;
  for (const Stage& stage : *stages) {
    most.push_back(MostLayers(topology, model, options, stage));
  }

  std::vector<int> layers = EvenLayers(model.num_layers(), num_stages);
  if (options.split == Split::kGiven) {
    if (absl::Status status = CheckGivenLayers(options, model, stages->size()); !status.ok()) {
      return status;
    }
    layers = options.layers;
  } else if (options.split != Split::kEven && SomeSplitFits(model.num_layers(), most)) {
    const BatchShape batch =
        options.split == Split::kBalancedDecode
            ? BatchShape::Decode(kBalanceRequests, kBalanceContext)
            : BatchShape::Prefill(options.max_chunk_tokens, kBalanceContext, true);
    layers = Balance(model.num_layers(), most, [&](int s, int count) {
      Stage trial = (*stages)[s];
      trial.num_layers = count;
      return TotalSeconds(CostOf(topology, model, options.tensor_parallel, trial).Explain(batch));
    });
  }
  AssignLayers(*stages, layers);

  Plan plan;
  plan.tensor_parallel = options.tensor_parallel;
  plan.boundary_bytes_per_token = model.boundary_bytes_per_token();
  bool fits = true;
  int64_t blocks = std::numeric_limits<int64_t>::max();
  for (Stage& stage : *stages) {
    stage.memory = MemoryOf(topology, model, options, stage);
    const int64_t block_bytes = stage.memory.kv_bytes_per_token * options.kv_block_tokens;
    fits = fits && stage.memory.left() >= block_bytes;
    if (block_bytes > 0) blocks = std::min(blocks, stage.memory.left() / block_bytes);
  }
  if (!fits) return DoesNotFit(topology, model, options, *stages, layers, most);
  if (options.kv_blocks > blocks) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "--kv-blocks %d: only %d blocks of %d tokens fit; leave it out or give at most that",
        options.kv_blocks, blocks, options.kv_block_tokens));
  }
  plan.stages = *std::move(stages);
  plan.scheduler = {
      .max_in_flight = options.max_in_flight > 0 ? options.max_in_flight : num_stages,
      .max_batch_tokens = options.max_batch_tokens,
      .max_chunk_tokens = options.max_chunk_tokens,
      .max_running = options.max_running,
      .kv_block_tokens = options.kv_block_tokens,
      .kv_blocks = options.kv_blocks > 0 ? options.kv_blocks : blocks,
  };
  if (absl::Status status = Scheduler::Validate(plan.scheduler); !status.ok()) return status;
  return plan;
}

StageCost MakeStageCost(const Topology& topology, const Model& model, const Plan& plan, int index) {
  const Stage& stage = plan.stages[index];
  const int64_t activation_bytes = ActivationBytes(topology.gpus()[stage.gpus.front()]);
  return CostOf(topology, WithActivationBytes(model, activation_bytes), plan.tensor_parallel,
                stage);
}

std::vector<PipelineHop> HopsOf(const Plan& plan) {
  std::vector<PipelineHop> hops;
  const int stages = static_cast<int>(plan.stages.size());
  for (int from = 0; stages > 1 && from < stages; ++from) {
    const int to = (from + 1) % stages;
    hops.push_back({from, to, plan.stages[from].gpus.front(), plan.stages[to].gpus.front()});
  }
  return hops;
}

int64_t LongestContext(const Plan& plan, const Model& model, int64_t requests) {
  FABRICAST_CHECK(requests >= 1) << "requests=" << requests;
  const int64_t blocks = plan.scheduler.kv_blocks / requests;
  return std::min(blocks * plan.scheduler.kv_block_tokens, model.max_context);
}

void AddPlan(const Plan& plan, const Topology& topology, Result& result) {
  *result.mutable_plan() = ToProto(plan, topology);
  if (plan.scheduler.kv_blocks > 0) {
    result.set_kv_peak_fraction(static_cast<double>(result.kv_peak_blocks()) /
                                static_cast<double>(plan.scheduler.kv_blocks));
  }
  int gpu = 0;
  for (const Stage& stage : plan.stages) {
    for (size_t i = 0; i < stage.gpus.size(); ++i) {
      result.mutable_plan()->mutable_memory(gpu++)->set_kv_peak_bytes(
          result.kv_peak_blocks() * plan.scheduler.kv_block_tokens *
          stage.memory.kv_bytes_per_token);
    }
  }
}

std::string StageName(const Stage& stage, const Topology& topology) {
  std::string name = topology.gpus()[stage.gpus.front()].name;
  for (size_t i = 1; i < stage.gpus.size(); ++i) {
    const GpuNode& gpu = topology.gpus()[stage.gpus[i]];
    absl::StrAppend(&name, "+", absl::string_view(gpu.name).substr(gpu.host.size() + 1));
  }
  return name;
}

PlanResult ToProto(const Plan& plan, const Topology& topology) {
  PlanResult result;
  result.set_tensor_parallel(plan.tensor_parallel);
  result.set_max_in_flight(plan.scheduler.max_in_flight);
  result.set_max_batch_tokens(plan.scheduler.max_batch_tokens);
  result.set_max_chunk_tokens(plan.scheduler.max_chunk_tokens);
  result.set_max_running(plan.scheduler.max_running);
  result.set_kv_block_tokens(plan.scheduler.kv_block_tokens);
  result.set_kv_blocks(plan.scheduler.kv_blocks);
  for (const Stage& stage : plan.stages) {
    StagePlan& out = *result.add_stages();
    out.set_first_layer(stage.first_layer);
    out.set_num_layers(stage.num_layers);
    out.set_embedding(stage.embedding);
    out.set_lm_head(stage.lm_head);
    for (int gpu : stage.gpus) {
      out.add_gpus(topology.gpus()[gpu].name);
      GpuMemory& memory = *result.add_memory();
      memory.set_gpu(topology.gpus()[gpu].name);
      memory.set_capacity_bytes(stage.memory.capacity);
      memory.set_weight_bytes(stage.memory.weights);
      memory.set_activation_bytes(stage.memory.activations);
      memory.set_reserve_bytes(stage.memory.reserve);
      memory.set_kv_cache_bytes(stage.memory.left());
    }
  }
  return result;
}

}  // namespace fabricast
