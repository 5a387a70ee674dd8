#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "tools/fabricast/report.h"
#include "tools/fabricast/table.h"

namespace fabricast {
namespace {

std::string LayersText(const Plan& plan, absl::string_view separator) {
  std::string text;
  for (const Stage& stage : plan.stages) {
    absl::StrAppend(&text, text.empty() ? "" : separator, stage.num_layers);
  }
  return text;
}

struct Pace {
  int slowest = 0;
  double slowest_s = 0;
  double mean_s = 0;
};

using StageSeconds = std::function<double(const StageCost& stage)>;

StageSeconds SecondsOf(const BatchShape& batch) {
  return [batch](const StageCost& stage) { return TotalSeconds(stage.Explain(batch)); };
}

Pace PaceOf(const Topology& topology, const Model& model, const Plan& plan,
            const StageSeconds& seconds_of) {
  Pace pace;
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const double seconds = seconds_of(MakeStageCost(topology, model, plan, static_cast<int>(s)));
    pace.mean_s += seconds / static_cast<double>(plan.stages.size());
    if (seconds <= pace.slowest_s) continue;
    pace.slowest_s = seconds;
    pace.slowest = static_cast<int>(s);
  }
  return pace;
}

struct Phase {
  std::string name;
  BatchShape batch;
};

std::vector<Phase> Phases(const Plan& plan) {
  return {{"decode, 1 request at 2048 tokens", BatchShape::Decode(1, 2048)},
          {"decode, 8 requests at 2048 tokens", BatchShape::Decode(8, 2048)},
          {"decode, 32 requests at 2048 tokens", BatchShape::Decode(32, 2048)},
          {absl::StrFormat("prefill chunk of %d tokens", plan.scheduler.max_chunk_tokens),
           BatchShape::Prefill(plan.scheduler.max_chunk_tokens, 0, true)}};
}

}  // namespace

void PrintPlan(const Topology& topology, const Model& model, const Plan& plan, std::ostream& out) {
  out << model.name << " (" << WeightFormatName(model.layer_format) << ", "
      << absl::StrFormat("%.2f", model.parameters() / 1e9) << " billion parameters, "
      << absl::StrFormat("%.1f", model.weight_bytes() / 1e9) << " GB) on " << topology.name()
      << ": layers " << LayersText(plan, "/");
  if (plan.tensor_parallel()) {
    out << ", tensor parallel over "
        << absl::StrJoin(plan.stages, "/", [](std::string* text, const Stage& stage) {
             absl::StrAppend(text, stage.gpus.size());
           });
  }
  out << "\n";
  for (const std::string& choice : plan.choices) out << "Chosen: " << choice << "\n";

  Table memory;
  memory.Section("Memory a GPU, GB");
  memory.Row("", {"layers", "weights", "activations", "reserve", "left for KV", "capacity"});
  for (const Stage& stage : plan.stages) {
    const StageMemory& m = stage.memory;
    memory.Row(
        absl::StrCat(StageName(stage, topology), stage.embedding ? " + embedding" : "",
                     stage.lm_head ? " + lm_head" : ""),
        {absl::StrFormat("%d-%d", stage.first_layer, stage.first_layer + stage.num_layers - 1),
         absl::StrFormat("%.1f", m.weights / 1e9), absl::StrFormat("%.1f", m.activations / 1e9),
         absl::StrFormat("%.1f", m.reserve / 1e9), absl::StrFormat("%.1f", m.left() / 1e9),
         absl::StrFormat("%.1f", m.capacity / 1e9)});
  }
  memory.Print(out);
  double weights = 0;
  double capacity = 0;
  double gpus = 0;
  for (const Stage& stage : plan.stages) {
    const double count = static_cast<double>(stage.gpus.size());
    weights += count * static_cast<double>(stage.memory.weights);
    capacity += count * static_cast<double>(stage.memory.capacity);
    gpus += count;
  }
  out << absl::StrFormat("Weights take %.1f GB a GPU on average and leave %.1f.\n",
                         weights / gpus / 1e9, (capacity - weights) / gpus / 1e9);

  out << "\nKV cache: " << plan.scheduler.kv_blocks << " blocks of "
      << plan.scheduler.kv_block_tokens << " tokens = " << plan.kv_tokens()
      << " tokens. Longest context, prompt and output together:\n";
  for (int64_t requests : {1, 8, 32}) {
    const int64_t tokens = LongestContext(plan, model, requests);
    out << absl::StrFormat("  %2d request%s  %7d tokens%s\n", requests, requests == 1 ? " " : "s",
                           tokens, tokens == model.max_context ? " (the model's limit)" : "");
  }

  Table times;
  times.Section("Computing time of a micro-batch, by stage");
  std::vector<std::string> heading;
  for (const Stage& stage : plan.stages) heading.push_back(StageName(stage, topology));
  heading.push_back("sum");
  heading.push_back("slowest / mean");
  times.Row("", heading);
  std::vector<StageCost> costs;
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    costs.push_back(MakeStageCost(topology, model, plan, static_cast<int>(s)));
  }
  for (const Phase& phase : Phases(plan)) {
    std::vector<std::string> cells;
    double sum = 0;
    double slowest = 0;
    for (const StageCost& cost : costs) {
      const double seconds = TotalSeconds(cost.Explain(phase.batch));
      cells.push_back(FormatSeconds(seconds));
      sum += seconds;
      slowest = std::max(slowest, seconds);
    }
    cells.push_back(FormatSeconds(sum));
    cells.push_back(absl::StrFormat("%.3f", slowest / (sum / static_cast<double>(costs.size()))));
    times.Row(phase.name, cells);
  }
  times.Print(out);
}

void PrintBalance(const Topology& topology, const Model& model, const PlanOptions& options,
                  const Plan& plan, std::ostream& out) {
  if (plan.stages.size() < 2) return;
  struct Goal {
    absl::string_view name;
    Split split;
    StageSeconds seconds;
  };
  const int64_t chunk = plan.scheduler.max_chunk_tokens;
  std::vector<Goal> goals = {
      {"decode", Split::kBalancedDecode, SecondsOf(BatchShape::Decode(8, 2048))},
      {"prefill", Split::kBalancedPrefill, SecondsOf(BatchShape::Prefill(chunk, 2048, true))},
  };
  if (options.load.prompt > 0) {
    goals.push_back({"request", Split::kAuto, [&](const StageCost& stage) {
                       return RequestSeconds(stage, options.load,
                                             static_cast<int>(plan.stages.size()), chunk);
                     }});
  }
  out << "\nBalance: a pipeline advances at its slowest stage\n";
  for (const Goal& goal : goals) {
    const Pace now = PaceOf(topology, model, plan, goal.seconds);
    PlanOptions balanced_options = options;
    balanced_options.split = goal.split;
    balanced_options.measured = nullptr;
    const absl::StatusOr<Plan> balanced = MakePlan(topology, model, balanced_options);
    if (!balanced.ok()) continue;
    const Pace then = PaceOf(topology, model, *balanced, goal.seconds);
    out << absl::StrFormat("  %-8s %s sets the pace: %s, %.1f %% above the mean of the stages",
                           goal.name, StageName(plan.stages[now.slowest], topology),
                           FormatSeconds(now.slowest_s), 100 * (now.slowest_s / now.mean_s - 1));
    if (then.slowest_s < now.slowest_s * (1 - 1e-9)) {
      out << absl::StrFormat("; --split %s takes %s (%+.1f %%)\n", LayersText(*balanced, ","),
                             FormatSeconds(then.slowest_s),
                             100 * (then.slowest_s / now.slowest_s - 1));
    } else {
      out << "; no split of whole layers is faster\n";
    }
  }
}

}  // namespace fabricast
