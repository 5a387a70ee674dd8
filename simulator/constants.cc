#include "simulator/constants.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/cost/communication_cost.h"

namespace fabricast {
namespace {

ConstantsInUse MeasuredTimes(const MeasuredStageTimes& measured) {
  Provenance provenance;
  provenance.set_measured_on(absl::StrCat(measured.samples(), " micro-batches"));
  return {.kind = ConstantsInUse::Kind::kKernelTimes,
          .what = "stages, measured",
          .provenance = provenance,
          .scaled_from = ""};
}

std::vector<ConstantsInUse> KernelTimes(const Scenario& scenario) {
  if (scenario.measured != nullptr) return {MeasuredTimes(*scenario.measured)};
  std::vector<ConstantsInUse> constants;
  const absl::string_view format = WeightFormatName(scenario.model.layer_format);
  std::set<std::string> specs;
  for (const Stage& stage : scenario.plan.stages) {
    for (int gpu : stage.gpus) {
      const std::string& spec = scenario.topology.gpus()[gpu].spec.name();
      const KernelCalibration& kernels = scenario.topology.kernels(gpu);
      if (!specs.insert(spec).second) continue;
      for (const GemmCurve& curve : kernels.gemms()) {
        if (format != absl::string_view(curve.weight_format())) continue;
        constants.push_back({.kind = ConstantsInUse::Kind::kKernelTimes,
                             .what = absl::StrCat(spec, ", ", format, " matrix products"),
                             .provenance = curve.provenance(),
                             .scaled_from = spec == kernels.gpu() ? "" : kernels.gpu()});
      }
    }
  }
  return constants;
}

}  // namespace

std::string ConstantsInUse::Describe() const {
  std::string text = absl::StrCat(what, ": ", provenance.measured_on());
  if (provenance.residual_p90() > 0) {
    absl::StrAppendFormat(&text, "; fit within %.0f %% (p50), %.0f %% (p90)",
                          100 * provenance.residual_p50(), 100 * provenance.residual_p90());
  }
  if (provenance.time_high_factor() > 0) {
    absl::StrAppendFormat(&text, "; times may be x %.2f to x %.2f", provenance.time_low_factor(),
                          provenance.time_high_factor());
  }
  if (!scaled_from.empty()) {
    absl::StrAppend(&text, "; scaled from ", scaled_from, " by published peaks, unmeasured");
  }
  return text;
}

std::vector<ConstantsInUse> ConstantsOf(const Scenario& scenario) {
  std::vector<ConstantsInUse> constants = KernelTimes(scenario);
  std::set<PathKind> kinds;
  for (const PipelineHop& hop : HopsOf(scenario.plan)) {
    kinds.insert(scenario.topology.route(hop.from_gpu, hop.to_gpu).kind);
  }
  for (const SendCalibration& send : scenario.topology.nccl().sends()) {
    if (!kinds.contains(send.path())) continue;
    constants.push_back({.kind = ConstantsInUse::Kind::kMessageLatencies,
                         .what = absl::StrCat("messages over ", PathKindName(send.path())),
                         .provenance = send.provenance(),
                         .scaled_from = ""});
  }
  return constants;
}

}  // namespace fabricast
