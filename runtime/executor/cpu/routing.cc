#include "runtime/executor/cpu/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/check.h"

namespace fabricast {

void ChooseExperts(const ExpertsConfig& config, absl::Span<float> logits,
                   absl::Span<ExpertChoice> choices) {
  FABRICAST_CHECK(static_cast<int64_t>(logits.size()) == config.experts &&
                  static_cast<int64_t>(choices.size()) == config.per_token &&
                  config.per_token <= config.experts)
      << "logits=" << logits.size() << " choices=" << choices.size();
  const float largest = *std::max_element(logits.begin(), logits.end());
  float sum = 0;
  for (float& logit : logits) {
    logit = std::exp(logit - largest);
    sum += logit;
  }
  for (float& weight : logits) weight /= sum;

  constexpr float kTaken = -1;  // below all weights
  float chosen_sum = 0;
  for (ExpertChoice& choice : choices) {
    size_t best = 0;
    for (size_t e = 1; e < logits.size(); ++e) {
      if (logits[e] > logits[best]) best = e;
    }
    choice = {.expert = static_cast<int32_t>(best), .weight = logits[best]};
    chosen_sum += logits[best];
    logits[best] = kTaken;
  }
  if (config.normalize) {
    for (ExpertChoice& choice : choices) choice.weight /= chosen_sum;
  }
  std::sort(choices.begin(), choices.end(),
            [](const ExpertChoice& a, const ExpertChoice& b) { return a.expert < b.expert; });
}

void GatherByExpert(const ExpertsConfig& config, absl::Span<const ExpertChoice> choices,
                    ExpertRows& rows) {
  rows.first_row.assign(config.experts + 1, 0);
  for (const ExpertChoice& choice : choices) ++rows.first_row[choice.expert + 1];
  for (int64_t e = 0; e < config.experts; ++e) rows.first_row[e + 1] += rows.first_row[e];
  rows.source.resize(choices.size());
  rows.gathered.resize(choices.size());
  std::vector<int64_t> next(rows.first_row.begin(), rows.first_row.end() - 1);
  for (size_t i = 0; i < choices.size(); ++i) {
    const int64_t row = next[choices[i].expert]++;
    rows.source[row] = static_cast<int64_t>(i) / config.per_token;
    rows.gathered[i] = row;
  }
}

}  // namespace fabricast
