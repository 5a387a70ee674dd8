#include "runtime/plan/pipelining.h"

#include <algorithm>
#include <cmath>

#include "runtime/check.h"
#include "runtime/metrics/compute_time.h"

namespace fabricast {
namespace {

constexpr int64_t kShortestChunk = 64;
constexpr double kGoodRate = 0.95;
// Times that differ by less are the same.
constexpr double kSame = 1e-3;

// The middle one of the chunks of a prompt.
BatchShape MiddleChunk(int64_t tokens, int64_t prompt, bool samples) {
  return BatchShape::Prefill(tokens, std::max<int64_t>(0, (prompt - tokens) / 2), samples);
}

struct StageTimes {
  double slowest_s = 0;
  double sum_s = 0;
};

StageTimes TimesOf(absl::Span<const StageCost> stages, const BatchShape& batch) {
  StageTimes times;
  for (const StageCost& stage : stages) {
    const double seconds = TotalSeconds(stage.Explain(batch));
    times.slowest_s = std::max(times.slowest_s, seconds);
    times.sum_s += seconds;
  }
  return times;
}

double TtftSeconds(absl::Span<const StageCost> stages, int64_t prompt, int64_t chunk) {
  chunk = std::min(chunk, prompt);
  const StageTimes middle = TimesOf(stages, MiddleChunk(chunk, prompt, false));
  const StageTimes last = TimesOf(stages, MiddleChunk(chunk, prompt, true));
  return (static_cast<double>(prompt) / static_cast<double>(chunk) - 1) * middle.slowest_s +
         last.sum_s;
}

}  // namespace

double RequestSeconds(const StageCost& stage, const ExpectedLoad& load, int micro_batches,
                      int64_t chunk) {
  FABRICAST_CHECK(micro_batches >= 1 && chunk >= 1) << micro_batches << ", " << chunk;
  const auto seconds = [&](const BatchShape& batch) { return TotalSeconds(stage.Explain(batch)); };
  const int64_t decodes = (load.requests + micro_batches - 1) / micro_batches;
  double sum_s = static_cast<double>(load.output) *
                 seconds(BatchShape::Decode(decodes, load.context)) / static_cast<double>(decodes);
  if (load.prompt > 0) {
    const int64_t tokens = std::min(chunk, load.prompt);
    const double chunks = static_cast<double>(load.prompt) / static_cast<double>(tokens);
    sum_s += (chunks - 1) * seconds(MiddleChunk(tokens, load.prompt, false)) +
             seconds(MiddleChunk(tokens, load.prompt, true));
  }
  return sum_s;
}

MicroBatchChoice ChooseMicroBatches(absl::Span<const StageCost> stages, const ExpectedLoad& load,
                                    const std::function<double(int64_t decodes)>& between_s) {
  FABRICAST_CHECK(!stages.empty() && load.requests >= 1) << load.requests;
  const int fewest = static_cast<int>(stages.size());
  std::vector<MicroBatchChoice> choices;
  for (int m = fewest; m == fewest || m <= load.requests; ++m) {
    MicroBatchChoice choice{.micro_batches = m, .decodes = (load.requests + m - 1) / m};
    const StageTimes times = TimesOf(stages, BatchShape::Decode(choice.decodes, load.context));
    choice.slowest_s = times.slowest_s;
    choice.sum_s = times.sum_s;
    choice.between_s = between_s(choice.decodes);
    const double busy_s = m * choice.slowest_s;
    const double way_s = choice.sum_s + choice.between_s;
    choice.token_s = std::max(busy_s, way_s);
    choices.push_back(choice);
    if (busy_s >= way_s) break;
  }
  double least_s = choices.front().token_s;
  for (const MicroBatchChoice& choice : choices) least_s = std::min(least_s, choice.token_s);
  return *std::find_if(choices.begin(), choices.end(), [&](const MicroBatchChoice& choice) {
    return choice.token_s <= least_s * (1 + kSame);
  });
}

ChunkChoice ChooseChunk(absl::Span<const StageCost> stages, const ExpectedLoad& load,
                        int64_t most) {
  FABRICAST_CHECK(!stages.empty() && most >= 1) << most;
  std::vector<int64_t> candidates;
  for (int64_t tokens = kShortestChunk; tokens < most; tokens *= 2) candidates.push_back(tokens);
  candidates.push_back(most);
  std::vector<double> rates;
  for (int64_t tokens : candidates) {
    const StageTimes times = TimesOf(stages, MiddleChunk(tokens, load.prompt, false));
    rates.push_back(static_cast<double>(tokens) / times.slowest_s);
  }
  const double best_rate = *std::max_element(rates.begin(), rates.end());
  ChunkChoice best;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (rates[i] < kGoodRate * best_rate) continue;
    const double ttft_s = load.prompt > 0 ? TtftSeconds(stages, load.prompt, candidates[i]) : 0;
    if (best.tokens > 0 && ttft_s >= best.ttft_s) continue;
    best = {.tokens = candidates[i], .rate_fraction = rates[i] / best_rate, .ttft_s = ttft_s};
  }
  if (load.prompt > 0) best.unchunked_s = TtftSeconds(stages, load.prompt, load.prompt);
  return best;
}

}  // namespace fabricast
