#include "runtime/plan/memory_fit.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace fabricast {
namespace {

constexpr double kGb = 1e9;

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

}  // namespace

StageMemory MemoryOf(const Topology& topology, const Model& model, const PlanOptions& options,
                     const Stage& stage) {
  const int tp = static_cast<int>(stage.gpus.size());
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
  // Each GPU looks up the rows of all tokens, in a table of its own.
  if (stage.embedding) memory.weights += model.embedding_bytes;
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

bool SomeSplitFits(int layers, const std::vector<int>& most) {
  return *std::min_element(most.begin(), most.end()) >= 1 &&
         std::accumulate(most.begin(), most.end(), 0) >= layers;
}

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
  message = absl::StrCat(model.name, " with split ", absl::StrJoin(layers, ","), " does not fit ",
                         topology.name(), ". ", message, ". ");
  if (std::optional<std::vector<int>> near = NearestFit(layers, most)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(message, "The nearest that fits: --split ", absl::StrJoin(*near, ",")));
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
  int gpus_needed = 0;
  for (const Stage& stage : stages) {
    const int needed =
        StagesNeeded(topology, model, options, stage) * static_cast<int>(stage.gpus.size());
    if (needed > 0 && (gpus_needed == 0 || needed < gpus_needed)) gpus_needed = needed;
  }
  if (gpus_needed > 0) {
    absl::StrAppend(&message, " It takes ", gpus_needed, " such GPUs");
    absl::StrAppend(&message, model.layer_format == WeightFormat::kInt4Group128
                                  ? "."
                                  : ", or a smaller weight format: --quantization int4.");
  }
  return absl::ResourceExhaustedError(message);
}

}  // namespace fabricast
