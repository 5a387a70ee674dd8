// Whatever a peer sends is either refused or makes a step, or reports, that hold together.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "runtime/control/control.pb.h"
#include "runtime/control/step_message.h"

namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckStep(const fabricast::control::Step& message) {
  const auto step = fabricast::FromMessage(message);
  if (!step.ok()) return;
  Require(!(*step)->micro_batch.entries.empty());
  Require((*step)->sampling.size() == (*step)->micro_batch.entries.size());
  Require((*step)->micro_batch.tokens() == static_cast<int64_t>((*step)->tokens.size()));
  for (const fabricast::SamplingParams& params : (*step)->sampling) {
    Require(fabricast::Validate(params).ok());
  }
  const auto again = fabricast::FromMessage(fabricast::ToMessage(**step, message.generation()));
  Require(again.ok());
  Require((*again)->tokens == (*step)->tokens);
}

void CheckReports(const fabricast::control::Reports& message) {
  fabricast::ReportReader reader;
  for (int time = 0; time < 2; ++time) {
    const auto reports = reader.Take(message, 1, -5);
    if (!reports.ok()) return;
    for (const fabricast::StageReport& report : *reports) Require(report.id >= 0);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  fabricast::control::FromHead down;
  if (down.ParseFromString(bytes)) CheckStep(down.step());
  fabricast::control::FromStage up;
  if (up.ParseFromString(bytes)) CheckReports(up.reports());
  fabricast::control::Step step;
  if (step.ParseFromString(bytes)) CheckStep(step);
  fabricast::control::Reports reports;
  if (reports.ParseFromString(bytes)) CheckReports(reports);
  return 0;
}
