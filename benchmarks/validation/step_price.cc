#include "benchmarks/validation/step_price.h"

#include <algorithm>
#include <cmath>

#include "runtime/check.h"

namespace fabricast {

StepShape StepShape::Of(const MicroBatch& micro_batch) {
  StepShape step;
  for (const BatchEntry& entry : micro_batch.entries) {
    if (entry.decode) {
      ++step.decodes;
      step.decode_context += static_cast<double>(entry.first_token + 1);
    } else {
      step.chunks.push_back(
          {.tokens = entry.tokens, .past = entry.first_token, .samples = entry.samples});
    }
  }
  return step;
}

StepShape StepShape::Of(const PromptStep& prompt_step) {
  StepShape step{
      .chunks = {}, .decodes = prompt_step.decodes, .decode_context = prompt_step.context};
  for (int64_t tokens : prompt_step.prompts) step.chunks.push_back({.tokens = tokens});
  return step;
}

StepPrice::StepPrice(const Topology& topology, const Model& model, const Plan& plan)
    : cost_(MakeStageCost(topology, model, plan, 0)),
      layers_(model.num_layers()),
      step_overhead_s_(topology.kernels(plan.stages[0].gpus[0]).step_overhead_us() * 1e-6),
      decode_overhead_s_(topology.kernels(plan.stages[0].gpus[0]).decode_attention().overhead_us() *
                         1e-6),
      prefill_overhead_s_(
          topology.kernels(plan.stages[0].gpus[0]).prefill_attention().overhead_us() * 1e-6) {
  FABRICAST_CHECK(plan.stages.size() == 1) << plan.stages.size() << " stages";
}

ComputeTime StepPrice::Explain(const StepShape& step) const {
  BatchShape batch;
  batch.tokens = step.decodes;
  batch.sampled = step.decodes;
  batch.decodes = step.decodes;
  batch.decode_context = std::llround(step.decode_context);
  for (const Chunk& chunk : step.chunks) {
    const BatchShape alone = BatchShape::Prefill(chunk.tokens, chunk.past, chunk.samples);
    batch.tokens += alone.tokens;
    batch.sampled += alone.sampled;
    batch.chunks_attended.push_back(alone.chunks_attended.front());
  }
  return cost_.Explain(batch);
}

double StepPrice::Seconds(const StepShape& step) const { return TotalSeconds(Explain(step)); }

double StepPrice::AttentionSeconds(const StepShape& step) const {
  const ComputeTime time = Explain(step);
  return time.decode_attention_s() + time.prefill_attention_s() +
         layers_ * ((step.decodes > 0 ? decode_overhead_s_ : 0) +
                    static_cast<double>(step.chunks.size()) * prefill_overhead_s_);
}

double StepPrice::SecondsWithMixedKernel(const StepShape& step, const LayerProfile& profile) const {
  if (step.decodes == 0 || step.chunks.empty()) return Seconds(step);
  const Chunk largest =
      *std::max_element(step.chunks.begin(), step.chunks.end(),
                        [](const Chunk& a, const Chunk& b) { return a.tokens < b.tokens; });
  const StepShape replaced{
      .chunks = {largest}, .decodes = step.decodes, .decode_context = step.decode_context};
  const double kernel_s = profile.AttentionSeconds(
      static_cast<double>(largest.tokens), static_cast<double>(largest.past),
      static_cast<double>(step.decodes), step.decode_context / static_cast<double>(step.decodes));
  return Seconds(step) - AttentionSeconds(replaced) + layers_ * kernel_s;
}

DecodeRest::DecodeRest(const std::vector<DecodeWindow>& windows, const StepPrice& price) {
  for (const DecodeWindow& window : windows) {
    const StepShape step{
        .chunks = {}, .decodes = std::llround(window.requests), .decode_context = window.context};
    requests_.push_back(window.requests);
    seconds_.push_back(window.step_s - price.Seconds(step));
  }
}

double DecodeRest::Seconds(double requests) const {
  if (requests_.empty()) return 0;
  const auto above = std::upper_bound(requests_.begin(), requests_.end(), requests);
  if (above == requests_.begin()) return seconds_.front();
  if (above == requests_.end()) return seconds_.back();
  const auto i = static_cast<size_t>(above - requests_.begin());
  const double share = (requests - requests_[i - 1]) / (requests_[i] - requests_[i - 1]);
  return seconds_[i - 1] + share * (seconds_[i] - seconds_[i - 1]);
}

}  // namespace fabricast
