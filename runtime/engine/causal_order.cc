#include "runtime/engine/causal_order.h"

#include <utility>

#include "runtime/check.h"

namespace fabricast {

void CausalOrder::Add(StageReport report, std::vector<StageReport>& ordered) {
  FABRICAST_CHECK(report.stage >= 0 && report.stage < static_cast<int>(stages_.size()))
      << "a report of stage " << report.stage << " of " << stages_.size();
  FABRICAST_CHECK(report.stage > 0 || report.kind != StageReport::Kind::kDelivered)
      << "micro-batch " << report.id << " was delivered to the first stage";
  Stage& stage = stages_[report.stage];
  if (stage.held.empty() && MayCome(report)) return Append(std::move(report), ordered);
  stage.held.push_back(std::move(report));
  ++held_;
}

void CausalOrder::Clear() {
  const size_t stages = stages_.size();
  stages_.clear();
  stages_.resize(stages);
  held_ = 0;
}

bool CausalOrder::MayCome(const StageReport& report) const {
  return report.kind != StageReport::Kind::kDelivered ||
         stages_[report.stage - 1].sent >= report.id;
}

void CausalOrder::Append(StageReport report, std::vector<StageReport>& ordered) {
  const size_t next = report.stage + 1;
  const bool sent = report.kind == StageReport::Kind::kSendStarted;
  if (sent) stages_[report.stage].sent = report.id;
  ordered.push_back(std::move(report));
  if (!sent || next == stages_.size()) return;
  std::deque<StageReport>& held = stages_[next].held;
  while (!held.empty() && MayCome(held.front())) {
    StageReport released = std::move(held.front());
    held.pop_front();
    --held_;
    Append(std::move(released), ordered);
  }
}

}  // namespace fabricast
