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
#include "runtime/plan/memory_fit.h"

namespace fabricast {
namespace {

// Batches by which stages are balanced: one token of each of 8 requests at a middling context; one
// full chunk of a prompt's middle.
constexpr int64_t kBalanceRequests = 8;
constexpr int64_t kBalanceContext = 2048;
// How far the slowest stage may be above the mean without a word.
constexpr double kEvenEnough = 0.02;
// Of the head and the messages to and from it, a step: 110 to 146 us in
// benchmarks/results/processes.md, stages as processes of one host.
constexpr double kControlSeconds = 150e-6;
constexpr int64_t kSampledTokenBytes = 4;

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

// GPUs of each stage.
absl::StatusOr<std::vector<int>> GroupSizes(const Topology& topology, const PlanOptions& options) {
  const int num_gpus = static_cast<int>(topology.gpus().size());
  std::vector<int> sizes = options.tensor_parallel;
  FABRICAST_CHECK(!sizes.empty());
  for (int size : sizes) {
    if (size > num_gpus) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor parallelism over %d GPUs, %s has %d: use 1 to %d", size,
                          topology.name(), num_gpus, num_gpus));
    }
  }
  if (sizes.size() == 1) {
    const int tp = sizes.front();
    const int stages = options.stages > 0 ? options.stages : num_gpus / tp;
    if (stages * tp > num_gpus) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%d stages of %d GPUs need %d, %s has %d: use at most %d stages", options.stages, tp,
          options.stages * tp, topology.name(), num_gpus, num_gpus / tp));
    }
    return std::vector<int>(stages, tp);
  }
  if (options.stages > 0 && options.stages != static_cast<int>(sizes.size())) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "--tensor-parallel %s is of %d stages, --stages says %d: give one number a stage, or one "
        "for all",
        absl::StrJoin(sizes, ","), sizes.size(), options.stages));
  }
  const int needed = std::accumulate(sizes.begin(), sizes.end(), 0);
  if (needed > num_gpus) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "--tensor-parallel %s needs %d GPUs, %s has %d: use fewer or smaller stages",
        absl::StrJoin(sizes, ","), needed, topology.name(), num_gpus));
  }
  return sizes;
}

// Stages with their GPUs, before layers are known.
absl::StatusOr<std::vector<Stage>> GroupGpus(const Topology& topology, const PlanOptions& options) {
  const absl::StatusOr<std::vector<int>> sizes = GroupSizes(topology, options);
  if (!sizes.ok()) return sizes.status();
  std::vector<Stage> result(sizes->size());
  int next = 0;
  for (size_t s = 0; s < result.size(); ++s) {
    for (int i = 0; i < (*sizes)[s]; ++i) result[s].gpus.push_back(next++);
    const GpuNode& first = topology.gpus()[result[s].gpus.front()];
    for (int gpu : result[s].gpus) {
      if (topology.gpus()[gpu].host == first.host) continue;
      return absl::InvalidArgumentError(
          absl::StrFormat("stage %d would split its layers over %s and %s, which are in two hosts: "
                          "tensor parallelism sends two all-reduces a layer and stays inside a "
                          "host; choose sizes that divide the GPUs of every host, or reorder "
                          "`ranks`",
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

// What a stage takes with so many layers.
using StageSeconds = std::function<double(int stage, int layers)>;

// Least maximum over stages of seconds(stage, layers), within `most` and with at least one layer a
// stage: adds layers one by one to the stage that ends up fastest. Optimal since seconds grow with
// layers.
std::vector<int> Balance(int layers, const std::vector<int>& most, const StageSeconds& seconds) {
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

absl::Status CheckGivenLayers(const PlanOptions& options, const Model& model, size_t stages) {
  if (options.layers.size() != stages) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--split %s gives %d stages, the plan has %d: give one number a stage",
                        absl::StrJoin(options.layers, ","), options.layers.size(), stages));
  }
  int sum = 0;
  for (int layers : options.layers) {
    if (layers < 1) {
      return absl::InvalidArgumentError(absl::StrCat("--split ", absl::StrJoin(options.layers, ","),
                                                     ": a stage needs at least one layer"));
    }
    sum += layers;
  }
  if (sum != model.num_layers()) {
    return absl::InvalidArgumentError(absl::StrFormat("--split %s adds up to %d, %s has %d layers",
                                                      absl::StrJoin(options.layers, ","), sum,
                                                      model.name, model.num_layers()));
  }
  return absl::OkStatus();
}

double SustainedTflops(const GpuSpec& gpu) {
  return gpu.bf16_tflops() *
         (gpu.has_sustained_compute_fraction() ? gpu.sustained_compute_fraction() : 1);
}

StageCost CostOf(const Topology& topology, const Model& model, const Stage& stage) {
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
                           .tensor_parallel = static_cast<int>(stage.gpus.size())};
  if (stage.gpus.size() > 1) {
    const auto price = [topology, gpus = stage.gpus](CollectiveOp op) {
      return [topology, gpus, op](double bytes) {
        absl::StatusOr<double> seconds = LoneCollectiveSeconds(topology, op, gpus, bytes);
        FABRICAST_CHECK(seconds.ok()) << seconds.status();
        return *seconds;
      };
    };
    options.all_reduce = price(COLLECTIVE_OP_ALL_REDUCE);
    options.all_gather = price(COLLECTIVE_OP_ALL_GATHER);
    const auto& sums = topology.kernels(slowest).pair_sums();
    const bool pair = stage.gpus.size() == 2 && !sums.empty() &&
                      topology.route(stage.gpus[0], stage.gpus[1]).kind == PATH_KIND_NVLINK;
    if (pair) {
      options.all_reduce = [sums, by_nccl = options.all_reduce](double bytes) {
        return bytes > sums.rbegin()->bytes() ? by_nccl(bytes)
                                              : InterpolateLatencySeconds(sums, bytes);
      };
    }
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
      for (CollectiveOp op : {COLLECTIVE_OP_ALL_REDUCE, COLLECTIVE_OP_ALL_GATHER}) {
        absl::StatusOr<double> seconds = LoneCollectiveSeconds(topology, op, stage.gpus, 1e6);
        if (!seconds.ok()) return seconds.status();
      }
    }
  }
  return absl::OkStatus();
}

// "2,1"; nothing for anything else.
std::optional<std::vector<int>> WholeNumbers(absl::string_view text) {
  std::vector<int> numbers;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    int number = 0;
    if (!absl::SimpleAtoi(part, &number)) return std::nullopt;
    numbers.push_back(number);
  }
  return numbers;
}

std::vector<StageCost> CostsOf(const Topology& topology, const Model& model,
                               const std::vector<Stage>& stages) {
  std::vector<StageCost> costs;
  for (const Stage& stage : stages) costs.push_back(CostOf(topology, model, stage));
  return costs;
}

// For each stage, what it was measured to compute over what the roofline says of its layers then;
// ones without a measured run. They matter in proportion to one another only.
absl::StatusOr<std::vector<double>> MeasuredOverRoofline(const Topology& topology,
                                                         const Model& model,
                                                         const PlanOptions& options,
                                                         const std::vector<Stage>& stages) {
  std::vector<double> factors(stages.size(), 1);
  if (options.measured == nullptr) return factors;
  const Result& run = *options.measured;
  const auto refusal = [](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the measured run ", why, ": measure this model on stages of these GPUs, with any split"));
  };
  if (run.plan().stages_size() != static_cast<int>(stages.size()) ||
      run.stages_size() != static_cast<int>(stages.size())) {
    return refusal(
        absl::StrFormat("has %d stages, the plan %d", run.plan().stages_size(), stages.size()));
  }
  int next_layer = 0;
  for (size_t s = 0; s < stages.size(); ++s) {
    const StagePlan& was = run.plan().stages(static_cast<int>(s));
    if (was.gpus_size() != static_cast<int>(stages[s].gpus.size())) {
      return refusal(absl::StrFormat("has %d GPUs in stage %d, the plan %d", was.gpus_size(), s,
                                     stages[s].gpus.size()));
    }
    if (was.first_layer() != next_layer || was.num_layers() < 1 ||
        was.num_layers() > model.num_layers() - next_layer) {
      return refusal(absl::StrFormat("is not of %d layers", model.num_layers()));
    }
    next_layer += was.num_layers();
    Stage stage = stages[s];
    stage.first_layer = was.first_layer();
    stage.num_layers = was.num_layers();
    const double busy_s = run.stages(static_cast<int>(s)).busy_s();
    if (!(busy_s > 0)) return refusal(absl::StrFormat("has no busy time of stage %d", s));
    factors[s] = busy_s / RequestSeconds(CostOf(topology, model, stage), options.load,
                                         static_cast<int>(stages.size()), options.max_chunk_tokens);
  }
  if (next_layer != model.num_layers()) {
    return refusal(absl::StrFormat("is not of %d layers", model.num_layers()));
  }
  return factors;
}

// What Split::kBalanced... and kAuto even out.
absl::StatusOr<StageSeconds> SecondsToBalance(const Topology& topology, const Model& model,
                                              const PlanOptions& options,
                                              const std::vector<Stage>& stages) {
  absl::StatusOr<std::vector<double>> factors =
      MeasuredOverRoofline(topology, model, options, stages);
  if (!factors.ok()) return factors.status();
  return [&, factors = *std::move(factors)](int s, int layers) {
    Stage trial = stages[s];
    trial.first_layer = 0;
    trial.num_layers = layers;
    const StageCost cost = CostOf(topology, model, trial);
    switch (options.split) {
      case Split::kBalancedDecode:
        return TotalSeconds(cost.Explain(BatchShape::Decode(kBalanceRequests, kBalanceContext)));
      case Split::kBalancedPrefill:
        return TotalSeconds(
            cost.Explain(BatchShape::Prefill(options.max_chunk_tokens, kBalanceContext, true)));
      default:
        return factors[s] * RequestSeconds(cost, options.load, static_cast<int>(stages.size()),
                                           options.max_chunk_tokens);
    }
  };
}

std::string LoadText(const ExpectedLoad& load) {
  if (load.prompt == 0) {
    return absl::StrFormat("decodes of %d requests at %d tokens", load.requests, load.context);
  }
  return absl::StrFormat("%d tokens in, %d out, %d requests at a time", load.prompt, load.output,
                         load.requests);
}

std::string AutoSplitText(const PlanOptions& options, const std::vector<int>& layers,
                          const StageSeconds& seconds) {
  std::vector<double> times;
  for (size_t s = 0; s < layers.size(); ++s) {
    times.push_back(seconds(static_cast<int>(s), layers[s]));
  }
  const auto slowest = std::max_element(times.begin(), times.end());
  const int stage = static_cast<int>(slowest - times.begin());
  const double mean =
      std::accumulate(times.begin(), times.end(), 0.0) / static_cast<double>(times.size());
  const double above = *slowest / mean - 1;
  std::string text = absl::StrFormat(
      "split %s by %s for %s: stage %d takes longest, %.1f %% above the mean",
      absl::StrJoin(layers, ","), options.measured == nullptr ? "the roofline" : "measured times",
      LoadText(options.load), stage, 100 * above);
  if (above > kEvenEnough) {
    const double layer =
        layers[stage] > 1 ? *slowest - seconds(stage, layers[stage] - 1) : *slowest;
    absl::StrAppendFormat(&text,
                          "; no split of whole layers that fits is faster: a layer is %.1f %% of "
                          "that stage",
                          100 * layer / *slowest);
  }
  return text;
}

std::string Milliseconds(double seconds) { return absl::StrFormat("%.4g ms", 1e3 * seconds); }

std::string InFlightText(const MicroBatchChoice& choice, size_t stages) {
  return absl::StrFormat(
      "%d micro-batches in flight over %d stages, %d decodes each: a token takes the longer of %d "
      "x %s (the slowest stage) and %s (all stages) + %s (messages and head) = %s",
      choice.micro_batches, stages, choice.decodes, choice.micro_batches,
      Milliseconds(choice.slowest_s), Milliseconds(choice.sum_s), Milliseconds(choice.between_s),
      Milliseconds(choice.token_s));
}

std::string ChunkText(const ChunkChoice& choice, const ExpectedLoad& load) {
  std::string text =
      absl::StrFormat("prefill chunks of %d tokens, %.0f %% of the best rate of the slowest stage",
                      choice.tokens, 100 * choice.rate_fraction);
  if (load.prompt > 0) {
    absl::StrAppendFormat(&text, "; %d tokens alone take %s, %.2f x the time in one chunk",
                          load.prompt, Milliseconds(choice.ttft_s),
                          choice.ttft_s / choice.unchunked_s);
  }
  return text;
}

// What a decode micro-batch of so many requests spends between stages and at the head.
absl::StatusOr<std::function<double(int64_t decodes)>> BetweenStages(
    const Topology& topology, const std::vector<Stage>& stages, int64_t boundary_bytes_per_token) {
  std::vector<std::pair<SendCost, int64_t>> messages;  // with their bytes a decode
  for (const PipelineHop& hop : HopsOf(stages)) {
    absl::StatusOr<SendCost> cost =
        SendCost::For(topology, topology.route(hop.from_gpu, hop.to_gpu));
    if (!cost.ok()) return cost.status();
    messages.emplace_back(*std::move(cost),
                          hop.to_stage == 0 ? kSampledTokenBytes : boundary_bytes_per_token);
  }
  return [messages = std::move(messages)](int64_t decodes) {
    double seconds = messages.empty() ? 0 : kControlSeconds;
    for (const auto& [cost, bytes] : messages) {
      seconds += cost.LoneSeconds(static_cast<double>(decodes * bytes));
    }
    return seconds;
  };
}

}  // namespace

absl::Status ParseSplit(absl::string_view text, PlanOptions& options) {
  if (text == "even") {
    options.split = Split::kEven;
  } else if (text == "balanced" || text == "balanced-decode") {
    options.split = Split::kBalancedDecode;
  } else if (text == "balanced-prefill") {
    options.split = Split::kBalancedPrefill;
  } else if (text == "auto") {
    options.split = Split::kAuto;
  } else {
    options.split = Split::kGiven;
    std::optional<std::vector<int>> layers = WholeNumbers(text);
    if (!layers.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--split '", text,
          "': use even, balanced, balanced-decode, balanced-prefill, auto or layers a stage such "
          "as 42,42,42"));
    }
    options.layers = *std::move(layers);
  }
  return absl::OkStatus();
}

absl::Status ParseTensorParallel(absl::string_view text, PlanOptions& options) {
  std::optional<std::vector<int>> sizes = WholeNumbers(text);
  if (!sizes.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tensor-parallel '", text,
                     "': give the GPUs of every stage, such as 2, or of each, such as 2,1"));
  }
  options.tensor_parallel = *std::move(sizes);
  return absl::OkStatus();
}

bool Plan::tensor_parallel() const {
  return std::any_of(stages.begin(), stages.end(),
                     [](const Stage& stage) { return stage.gpus.size() > 1; });
}

absl::StatusOr<Plan> MakePlan(const Topology& topology, const Model& given_model,
                              const PlanOptions& given_options) {
  // Whether the model can be divided at all is the more useful answer, so it comes first.
  for (int tp : given_options.tensor_parallel) {
    if (absl::Status status = given_model.CheckTensorParallel(tp); !status.ok()) return status;
  }
  if (absl::Status status = CheckRanges(given_options); !status.ok()) return status;
  absl::StatusOr<std::vector<Stage>> stages = GroupGpus(topology, given_options);
  if (!stages.ok()) return stages.status();
  const absl::StatusOr<int64_t> activation_bytes = CommonActivationBytes(topology, *stages);
  if (!activation_bytes.ok()) return activation_bytes.status();
  const Model model = WithActivationBytes(given_model, *activation_bytes);
  const int num_stages = static_cast<int>(stages->size());
  if (num_stages > model.num_layers()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%d stages for the %d layers of %s: a stage needs at least one; use --stages", num_stages,
        model.num_layers(), model.name));
  }
  if (absl::Status status = CheckPrices(topology, model, *stages); !status.ok()) return status;

  Plan plan;
  PlanOptions options = given_options;
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
  }
  AssignLayers(*stages, layers);
  if (options.auto_chunk) {
    const ChunkChoice chunk =
        ChooseChunk(CostsOf(topology, model, *stages), options.load, options.max_batch_tokens);
    options.max_chunk_tokens = chunk.tokens;
    plan.choices.push_back(ChunkText(chunk, options.load));
  }
  const bool balanced = options.split != Split::kGiven && options.split != Split::kEven;
  if (balanced && SomeSplitFits(model.num_layers(), most)) {
    const absl::StatusOr<StageSeconds> seconds =
        SecondsToBalance(topology, model, options, *stages);
    if (!seconds.ok()) return seconds.status();
    layers = Balance(model.num_layers(), most, *seconds);
    AssignLayers(*stages, layers);
    if (options.split == Split::kAuto) {
      plan.choices.push_back(AutoSplitText(options, layers, *seconds));
    }
  }

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
  if (options.kv_blocks > 0) blocks = options.kv_blocks;
  if (options.auto_in_flight) {
    const auto between_s = BetweenStages(topology, *stages, plan.boundary_bytes_per_token);
    if (!between_s.ok()) return between_s.status();
    ExpectedLoad load = options.load;
    const int64_t fit = blocks * options.kv_block_tokens / std::max<int64_t>(1, load.context);
    load.requests = std::clamp<int64_t>(std::min<int64_t>(load.requests, options.max_running), 1,
                                        std::max<int64_t>(1, fit));
    const MicroBatchChoice choice =
        ChooseMicroBatches(CostsOf(topology, model, *stages), load, *between_s);
    options.max_in_flight = choice.micro_batches;
    plan.choices.push_back(InFlightText(choice, stages->size()));
  }
  plan.stages = *std::move(stages);
  plan.scheduler = {
      .max_in_flight = options.max_in_flight > 0 ? options.max_in_flight : num_stages,
      // Where more are in flight than stages, the next one waits at the first stage already.
      .first_stage_queue = options.max_in_flight > num_stages ? 2 : 1,
      .max_batch_tokens = options.max_batch_tokens,
      .max_chunk_tokens = options.max_chunk_tokens,
      .max_running = options.max_running,
      .kv_block_tokens = options.kv_block_tokens,
      .kv_blocks = blocks,
  };
  if (absl::Status status = Scheduler::Validate(plan.scheduler); !status.ok()) return status;
  return plan;
}

StageCost MakeStageCost(const Topology& topology, const Model& model, const Plan& plan, int index) {
  const Stage& stage = plan.stages[index];
  const int64_t activation_bytes = ActivationBytes(topology.gpus()[stage.gpus.front()]);
  return CostOf(topology, WithActivationBytes(model, activation_bytes), stage);
}

std::vector<PipelineHop> HopsOf(const std::vector<Stage>& stages) {
  std::vector<PipelineHop> hops;
  const int count = static_cast<int>(stages.size());
  for (int from = 0; count > 1 && from < count; ++from) {
    const int to = (from + 1) % count;
    hops.push_back({from, to, stages[from].gpus.front(), stages[to].gpus.front()});
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
  const size_t group = plan.stages.front().gpus.size();
  if (std::all_of(plan.stages.begin(), plan.stages.end(),
                  [&](const Stage& stage) { return stage.gpus.size() == group; })) {
    result.set_tensor_parallel(static_cast<int>(group));
  }
  result.set_max_in_flight(plan.scheduler.max_in_flight);
  result.set_max_batch_tokens(plan.scheduler.max_batch_tokens);
  result.set_max_chunk_tokens(plan.scheduler.max_chunk_tokens);
  result.set_max_running(plan.scheduler.max_running);
  result.set_kv_block_tokens(plan.scheduler.kv_block_tokens);
  result.set_kv_blocks(plan.scheduler.kv_blocks);
  result.mutable_choices()->Assign(plan.choices.begin(), plan.choices.end());
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
