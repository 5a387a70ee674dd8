#include "runtime/metrics/critical_path.h"

#include <algorithm>
#include <map>

#include "runtime/check.h"

namespace fabricast {
namespace {

PathKind ComputeKind(const RunEvents::Step& step) {
  if (step.prefills == 0) return PathKind::kDecode;
  return step.decodes == 0 ? PathKind::kPrefill : PathKind::kMixed;
}

// Goes back in time from an end, never before a beginning.
class Cursor {
 public:
  Cursor(int64_t begin_ns, int64_t end_ns, PathParts& parts)
      : begin_ns_(begin_ns), at_ns_(end_ns), parts_(parts) {}

  bool done() const { return at_ns_ <= begin_ns_; }
  // To `ns`, unless that is later: clocks of several hosts may disagree.
  void BackTo(int64_t ns, PathKind kind, int stage) {
    const int64_t to_ns = std::max(begin_ns_, std::min(at_ns_, ns));
    if (to_ns >= at_ns_) return;
    parts_.At(kind, stage) += static_cast<double>(at_ns_ - to_ns);
    at_ns_ = to_ns;
  }

 private:
  const int64_t begin_ns_;
  int64_t at_ns_;
  PathParts& parts_;
};

}  // namespace

std::string PathKindName(PathKind kind) {
  switch (kind) {
    case PathKind::kDecode:
    case PathKind::kPrefill:
    case PathKind::kMixed:
      return "compute";
    case PathKind::kStartDelay:
      return "start delay";
    case PathKind::kSendWait:
      return "send wait";
    case PathKind::kHop:
      return "hop";
    case PathKind::kHead:
      return "head";
    case PathKind::kQueue:
      return "queue";
  }
  return "";
}

std::string PathPhaseName(PathKind kind) {
  switch (kind) {
    case PathKind::kDecode:
      return "decode";
    case PathKind::kPrefill:
      return "prefill";
    case PathKind::kMixed:
      return "mixed";
    default:
      return "";
  }
}

void PathParts::Add(const PathParts& other, double times) {
  for (size_t i = 0; i < values_.size(); ++i) values_[i] += times * other.values_[i];
}

CriticalPath::CriticalPath(const RunEvents& run) : run_(run), known_(run.steps.size(), -1) {
  int known = -1;
  for (int step = 0; step < static_cast<int>(run.steps.size()); ++step) {
    const RunEvents::Step& of = run.steps[step];
    if (of.id == 0) known = step - 1;  // none of this generation
    const int none = step - of.id - 1;
    while (known + 1 < step && run.CompletedNs(known + 1) != kNever &&
           run.CompletedNs(known + 1) <= of.launched_ns) {
      ++known;
    }
    known_[step] = known > none ? known : -1;
  }
}

void CriticalPath::Explain(int step, int64_t begin_ns, PathParts& parts) const {
  const int last = run_.stages - 1;
  const int64_t end_ns = run_.CompletedNs(step);
  FABRICAST_CHECK(end_ns != kNever) << "step " << step << " was never completed";
  Cursor cursor(begin_ns, end_ns, parts);
  enum class Point { kDelivered, kSent, kComputed, kStarted, kLaunched };
  Point point = Point::kDelivered;
  int stage = last;
  while (!cursor.done()) {
    const RunEvents::StageTimes& times = run_.At(step, stage);
    // The micro-batch before, in whose way it may have been.
    const RunEvents::StageTimes* before =
        run_.steps[step].id > 0 ? &run_.At(step - 1, stage) : nullptr;
    switch (point) {
      case Point::kDelivered:
        cursor.BackTo(times.sent_ns, PathKind::kHop, stage);
        point = Point::kSent;
        break;
      case Point::kSent:
        // Where sends go one by one, the one before had to be there.
        if (before != nullptr && before->delivered_ns > times.computed_ns &&
            before->delivered_ns <= times.sent_ns) {
          cursor.BackTo(before->delivered_ns, PathKind::kSendWait, stage);
          --step;
          point = Point::kDelivered;
        } else {
          cursor.BackTo(times.computed_ns, PathKind::kSendWait, stage);
          point = Point::kComputed;
        }
        break;
      case Point::kComputed:
        cursor.BackTo(times.started_ns, ComputeKind(run_.steps[step]), stage);
        point = Point::kStarted;
        break;
      case Point::kStarted:
        if (before != nullptr && before->computed_ns > times.ready_ns) {
          cursor.BackTo(before->computed_ns, PathKind::kStartDelay, stage);
          --step;
          point = Point::kComputed;
          break;
        }
        cursor.BackTo(times.ready_ns, PathKind::kStartDelay, stage);
        point = stage == 0 ? Point::kLaunched : Point::kDelivered;
        stage = std::max(0, stage - 1);
        break;
      case Point::kLaunched: {
        const int known = known_[step];
        const int64_t known_ns = known >= 0 ? run_.CompletedNs(known) : kNever;
        if (before != nullptr && before->computed_ns <= times.ready_ns &&
            before->computed_ns > known_ns) {
          cursor.BackTo(before->computed_ns, PathKind::kHead, 0);
          --step;
          point = Point::kComputed;
        } else if (known >= 0) {
          cursor.BackTo(known_ns, PathKind::kHead, 0);
          step = known;
          stage = last;
          point = Point::kDelivered;
        } else {
          cursor.BackTo(begin_ns, PathKind::kHead, 0);
        }
        break;
      }
    }
  }
}

std::vector<RequestPath> ExplainRequests(const RunEvents& run) {
  struct Progress {
    int64_t launched_ns = kNever;  // for the first time
    int64_t first_token_ns = 0;
    int64_t last_token_ns = 0;
    int64_t tokens = 0;
  };
  const CriticalPath path(run);
  std::vector<Progress> progress(run.requests.size());
  std::vector<RequestPath> explained(run.requests.size());
  const auto finished = [&run](int request) {
    return run.requests[request].outcome == EventLog::FINISHED;
  };
  for (int step = 0; step < static_cast<int>(run.steps.size()); ++step) {
    // Requests of a micro-batch mostly waited for the same one.
    std::map<int64_t, PathParts> since;
    const auto parts_since = [&](int64_t begin_ns) -> const PathParts& {
      const auto [at, added] = since.try_emplace(begin_ns, run.stages);
      if (added) path.Explain(step, begin_ns, at->second);
      return at->second;
    };
    const int64_t completed_ns = run.CompletedNs(step);
    for (const RunEvents::Entry& entry : run.EntriesOf(step)) {
      if (!finished(entry.request)) continue;
      Progress& of = progress[entry.request];
      if (of.launched_ns == kNever) of.launched_ns = run.steps[step].launched_ns;
      if (!entry.samples || completed_ns == kNever) continue;
      RequestPath& to = explained[entry.request];
      if (of.tokens++ == 0) {
        of.first_token_ns = completed_ns;
        to.ttft = PathParts(run.stages);
        to.tpot = PathParts(run.stages);
        to.ttft.Add(parts_since(of.launched_ns), 1e-9);
      } else {
        to.tpot.Add(parts_since(of.last_token_ns), 1e-9);
      }
      of.last_token_ns = completed_ns;
    }
  }
  for (size_t i = 0; i < explained.size(); ++i) {
    const Progress& of = progress[i];
    RequestPath& to = explained[i];
    if (of.tokens == 0) continue;
    to.has_ttft = true;
    const int64_t arrival_ns = run.requests[i].arrival_ns;
    to.ttft_s = static_cast<double>(of.first_token_ns - arrival_ns) * 1e-9;
    to.ttft.At(PathKind::kQueue, 0) = static_cast<double>(of.launched_ns - arrival_ns) * 1e-9;
    if (of.tokens < 2) continue;
    to.has_tpot = true;
    const double gaps = static_cast<double>(of.tokens - 1);
    to.tpot_s = static_cast<double>(of.last_token_ns - of.first_token_ns) * 1e-9 / gaps;
    PathParts parts(run.stages);
    parts.Add(to.tpot, 1 / gaps);
    to.tpot = parts;
  }
  return explained;
}

}  // namespace fabricast
