// Sampling on the CPU, slowly: weights in double, whole vocabularies sorted.
#ifndef FABRICAST_KERNELS_SAMPLING_SAMPLING_REFERENCE_H_
#define FABRICAST_KERNELS_SAMPLING_SAMPLING_REFERENCE_H_

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <vector>

#include "absl/types/span.h"
#include "kernels/sampling/sampling.h"

namespace fabricast {

class SamplingReference {
 public:
  // `history`: the row's bitmap; not read without a penalty.
  SamplingReference(absl::Span<const float> logits, const GpuSamplingRow& row,
                    absl::Span<const uint32_t> history)
      : top_p_(row.top_p), scores_(logits.begin(), logits.end()) {
    bool nan = false;
    for (const float logit : scores_) nan = nan || std::isnan(logit);
    if (nan) return;
    largest_ = *std::max_element(scores_.begin(), scores_.end());
    if (!std::isfinite(largest_)) return;
    if (row.history >= 0 && row.repetition_penalty != 1) {
      for (size_t i = 0; i < scores_.size(); ++i) {
        if ((history[i / 32] >> (i % 32) & 1) == 0) continue;
        scores_[i] = scores_[i] < 0 ? scores_[i] * row.repetition_penalty
                                    : scores_[i] / row.repetition_penalty;
      }
    }
    const auto most = std::max_element(scores_.begin(), scores_.end());
    greedy_ = static_cast<int32_t>(most - scores_.begin());
    valid_ = std::isfinite(*most);
    if (row.temperature != 0 && valid_) Weigh(row, *most);
  }

  bool valid() const { return valid_; }
  float largest() const { return largest_; }  // before the penalty
  int32_t greedy() const { return greedy_; }

  // With a temperature: the token for a uniform random number, and with top-p multiplied by
  // `top_p_factor`, to see what a rounding may change.
  int32_t Draw(double uniform, double top_p_factor = 1) const {
    std::vector<bool> kept(weights_.size(), top_p_ == 1);
    double sum = sum_;
    if (top_p_ != 1) {
      const double mass = top_p_ * top_p_factor * sum_;
      sum = 0;
      for (const int32_t token : by_weight_) {
        if (sum >= mass) break;
        kept[token] = true;
        sum += weights_[token];
      }
    }
    const double target = uniform * sum;
    double before = 0;
    int32_t last = -1;
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (!kept[i] || weights_[i] == 0) continue;
      last = static_cast<int32_t>(i);
      before += weights_[i];
      if (before > target) break;
    }
    return last;
  }

 private:
  void Weigh(const GpuSamplingRow& row, float largest) {
    float kth = -INFINITY;
    if (row.top_k > 0 && static_cast<size_t>(row.top_k) < scores_.size()) {
      std::vector<float> sorted = scores_;
      std::nth_element(sorted.begin(), sorted.begin() + (row.top_k - 1), sorted.end(),
                       std::greater<float>());
      kth = sorted[row.top_k - 1];
    }
    const float temperature = std::max(row.temperature, FLT_MIN);
    // FP32, so that those are equal that are equal elsewhere.
    for (const float score : scores_) {
      weights_.push_back(
          score >= kth ? static_cast<float>(std::exp(double{(score - largest) / temperature})) : 0);
    }
    sum_ = std::accumulate(weights_.begin(), weights_.end(), 0.0);
    if (top_p_ == 1) return;
    by_weight_.resize(weights_.size());
    std::iota(by_weight_.begin(), by_weight_.end(), 0);
    std::stable_sort(by_weight_.begin(), by_weight_.end(),
                     [this](int32_t a, int32_t b) { return weights_[a] > weights_[b]; });
  }

  double top_p_;
  std::vector<float> scores_;
  bool valid_ = false;
  float largest_ = 0;
  int32_t greedy_ = 0;
  std::vector<double> weights_;
  double sum_ = 0;
  std::vector<int32_t> by_weight_;
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_SAMPLING_SAMPLING_REFERENCE_H_
