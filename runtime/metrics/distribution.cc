#include "runtime/metrics/distribution.h"

#include <algorithm>
#include <cmath>

#include "runtime/check.h"

namespace fabricast {

void Samples::Add(double value, int64_t count) {
  if (count == 0) return;
  count_ += count;
  if (!entries_.empty() && entries_.back().value == value) {
    entries_.back().count += count;
  } else {
    entries_.push_back({value, count});
  }
}

void Samples::Remove(double value) {
  FABRICAST_CHECK(count_ > 0) << value;
  --count_;
  removed_ = true;
  entries_.push_back({value, -1});
}

// Of sorted entries.
void Samples::MergeEqual() {
  std::vector<Entry> merged;
  for (const Entry& entry : entries_) {
    if (!merged.empty() && merged.back().value == entry.value) {
      merged.back().count += entry.count;
    } else {
      merged.push_back(entry);
    }
  }
  entries_.clear();
  for (const Entry& entry : merged) {
    FABRICAST_CHECK(entry.count >= 0) << entry.value << " was removed but never added";
    if (entry.count > 0) entries_.push_back(entry);
  }
}

Distribution Samples::Summarize() {
  Distribution result;
  result.set_count(count_);
  if (count_ == 0) return result;
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return a.value < b.value; });
  if (removed_) MergeEqual();
  double sum = 0;
  for (const Entry& entry : entries_) sum += entry.value * static_cast<double>(entry.count);
  result.set_mean(sum / static_cast<double>(count_));
  result.set_max(entries_.back().value);

  // The k-th smallest sample, k = 0 ... count-1. Asked in ascending order, so one pass serves all.
  size_t at = 0;
  int64_t before = 0;
  const auto sample = [&](int64_t k) {
    while (before + entries_[at].count <= k) before += entries_[at++].count;
    return entries_[at].value;
  };
  const auto percentile = [&](double q) {
    const double position = q * static_cast<double>(count_ - 1);
    const int64_t below = static_cast<int64_t>(std::floor(position));
    const double low = sample(below);
    const double share = position - static_cast<double>(below);
    if (share == 0) return low;
    // Looks one ahead without moving on: the next percentile may need this sample again.
    const double high = before + entries_[at].count > below + 1 ? low : entries_[at + 1].value;
    return low + share * (high - low);
  };
  result.set_p50(percentile(0.50));
  result.set_p90(percentile(0.90));
  result.set_p99(percentile(0.99));
  return result;
}

}  // namespace fabricast
