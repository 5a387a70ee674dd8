// Summaries of samples that may stand for many equal ones.
#ifndef FABRICAST_RUNTIME_METRICS_DISTRIBUTION_H_
#define FABRICAST_RUNTIME_METRICS_DISTRIBUTION_H_

#include <cstdint>
#include <vector>

#include "runtime/metrics/result.pb.h"

namespace fabricast {

// Collects samples with multiplicities: the gaps between tokens of a whole micro-batch are one
// entry, so that an hour of millions of tokens stays small without giving up exact percentiles.
class Samples {
 public:
  // Equal values one after the other are merged.
  void Add(double value, int64_t count = 1);

  // Takes back one sample of this very value. CHECKs that there is a sample.
  void Remove(double value);

  int64_t count() const { return count_; }

  // Percentiles as numpy.percentile's default: position q (n - 1) among the sorted samples, linear
  // between neighbours. All zero without samples. Sorts in place.
  Distribution Summarize();

 private:
  struct Entry {
    double value;
    int64_t count;
  };
  void MergeEqual();

  std::vector<Entry> entries_;
  int64_t count_ = 0;
  bool removed_ = false;  // entries of -1 stand beside those that they take back
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_METRICS_DISTRIBUTION_H_
