#include "runtime/control/report_order.h"

#include "absl/strings/str_format.h"

namespace fabricast {

void ReportOrder::Launched(const MicroBatch& micro_batch) {
  ++launched_;
  size_t samples = 0;
  for (const BatchEntry& entry : micro_batch.entries) samples += entry.samples ? 1 : 0;
  samples_.push_back(samples);
}

absl::Status ReportOrder::Take(const StageReport& report) {
  Progress& progress = progress_[report.stage];
  const bool first = report.stage == 0;
  const bool last = report.stage + 1 == stages_;
  MicroBatchId* count = nullptr;
  MicroBatchId limit = 0;  // what has gone before
  const char* what = "";
  switch (report.kind) {
    case StageReport::Kind::kDelivered:
      what = "received";
      count = &progress.delivered;
      limit = first ? 0 : launched_;
      break;
    case StageReport::Kind::kStarted:
      what = "started";
      count = &progress.started;
      limit = first ? launched_ : progress.delivered;
      // One at a time.
      if (progress.computed < progress.started) limit = progress.started;
      break;
    case StageReport::Kind::kComputed:
      what = "computed";
      count = &progress.computed;
      limit = progress.started;
      break;
    case StageReport::Kind::kSendStarted:
      what = "sent";
      count = &progress.sent;
      limit = last ? 0 : progress.computed;
      break;
  }
  if (report.id != *count || *count >= limit) {
    return absl::InvalidArgumentError(
        absl::StrFormat("it says to have %s micro-batch %d, where %d of %d possible is next", what,
                        report.id, *count, limit));
  }
  ++*count;
  size_t expected = 0;
  if (last && report.kind == StageReport::Kind::kComputed) {
    expected = samples_.front();
    samples_.pop_front();
  }
  if (report.sampled.size() != expected) {
    return absl::InvalidArgumentError(
        absl::StrFormat("micro-batch %d brought %d tokens where %d were expected", report.id,
                        report.sampled.size(), expected));
  }
  return absl::OkStatus();
}

}  // namespace fabricast
