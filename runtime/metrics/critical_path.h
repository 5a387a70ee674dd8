// Where the time of a token went: the critical path of a run.
//
// Every event has one that it waited for last. Walking back from a token along these, every instant
// belongs to one thing: a stage that computes (this micro-batch, or one before it that the stage
// was busy with), a hop, a stage that could start and did not yet, a send that was held back,
// or the head, which had not launched yet. So what an interval is made of sums to it exactly.
#ifndef FABRICAST_RUNTIME_METRICS_CRITICAL_PATH_H_
#define FABRICAST_RUNTIME_METRICS_CRITICAL_PATH_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "runtime/metrics/event_log.h"

namespace fabricast {

enum class PathKind { kDecode, kPrefill, kMixed, kStartDelay, kSendWait, kHop, kHead, kQueue };

// "compute", "start delay", "send wait", "hop", "head", "queue".
std::string PathKindName(PathKind kind);
// "decode", "prefill", "mixed" of the three that compute; else empty.
std::string PathPhaseName(PathKind kind);

// Parts of an interval, a number for each kind and stage; kHead and kQueue have no stage.
class PathParts {
 public:
  static constexpr int kKinds = 8;

  PathParts() = default;
  explicit PathParts(int stages) : values_(static_cast<size_t>(stages) * kKinds, 0.0) {}

  double& At(PathKind kind, int stage) { return values_[stage * kKinds + static_cast<int>(kind)]; }
  double At(PathKind kind, int stage) const {
    return values_[stage * kKinds + static_cast<int>(kind)];
  }
  void Add(const PathParts& other, double times = 1);
  int stages() const { return static_cast<int>(values_.size()) / kKinds; }

 private:
  std::vector<double> values_;
};

class CriticalPath {
 public:
  // `run` must outlive this.
  explicit CriticalPath(const RunEvents& run);

  // Adds what the time from `begin_ns` until the tokens of `step` were known is made of, in
  // nanoseconds. Nothing is negative, and the sum is the interval's length, or 0 if it begins
  // later. CHECKs that `step` was completed.
  void Explain(int step, int64_t begin_ns, PathParts& parts) const;

 private:
  const RunEvents& run_;
  // The step whose tokens were the last that the head knew when it launched this one, or -1.
  std::vector<int> known_;
};

// Which latencies of one request are made of what; seconds.
struct RequestPath {
  bool has_ttft = false;  // a first token came
  bool has_tpot = false;  // and another
  double ttft_s = 0;
  double tpot_s = 0;
  PathParts ttft;
  PathParts tpot;
};

// Of each request of `run` that finished; empty ones of the others.
std::vector<RequestPath> ExplainRequests(const RunEvents& run);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_METRICS_CRITICAL_PATH_H_
