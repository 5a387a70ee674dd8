#include "benchmarks/fabric_rehearsal/rehearsed_run.h"

#include <google/protobuf/util/json_util.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmarks/engine/measure.h"
#include "benchmarks/fabric_rehearsal/trace_file.h"
#include "runtime/model/model.h"
#include "runtime/plan/plan.h"
#include "runtime/workload/workload.h"
#include "topology/override.h"
#include "topology/topology.h"

namespace fabricast {
namespace {

absl::StatusOr<Result> ReadResultFile(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(file, ": cannot be read; is it there?"));
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  Result result;
  const auto parsed = google::protobuf::util::JsonStringToMessage(text, &result);
  if (!parsed.ok() || result.plan().stages().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": no result of a run: give what fabricast wrote for --out"));
  }
  return result;
}

PlanOptions OptionsOf(const PlanResult& plan) {
  PlanOptions options;
  options.split = Split::kGiven;
  for (const StagePlan& stage : plan.stages()) options.layers.push_back(stage.num_layers());
  options.stages = plan.stages_size();
  options.tensor_parallel = {plan.tensor_parallel()};
  if (plan.tensor_parallel() == 0) {
    options.tensor_parallel.clear();
    for (const StagePlan& stage : plan.stages()) {
      options.tensor_parallel.push_back(stage.gpus_size());
    }
  }
  options.max_in_flight = plan.max_in_flight();
  options.max_batch_tokens = plan.max_batch_tokens();
  options.max_chunk_tokens = plan.max_chunk_tokens();
  options.max_running = plan.max_running();
  options.kv_block_tokens = plan.kv_block_tokens();
  options.kv_blocks = plan.kv_blocks();
  return options;
}

// A file that is gone with this.
class TemporaryFile {
 public:
  TemporaryFile() {
    const char* const folder = getenv("TEST_TMPDIR");
    path_ = absl::StrCat(folder == nullptr ? "/tmp" : folder, "/fabric_rehearsal.XXXXXX");
    const int fd = mkstemp(path_.data());
    if (fd >= 0) close(fd);
  }
  ~TemporaryFile() { unlink(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

absl::StatusOr<RehearsedRun> ReadRun(const std::string& result_file,
                                     const std::string& trace_file) {
  absl::StatusOr<Result> result = ReadResultFile(result_file);
  if (!result.ok()) return result.status();
  absl::StatusOr<Timeline> timeline = ReadTrace(trace_file);
  if (!timeline.ok()) return timeline.status();
  return RehearsedRun{.result = *std::move(result), .timeline = *std::move(timeline)};
}

absl::StatusOr<Scenario> ScenarioOf(const Result& run, const std::string& model) {
  std::vector<Override> overrides;
  for (const std::string& text : run.inputs().overrides()) {
    absl::StatusOr<Override> parsed = ParseOverride(text);
    if (!parsed.ok()) return parsed.status();
    overrides.push_back(*std::move(parsed));
  }
  absl::StatusOr<Topology> topology = Topology::Load(run.inputs().topology(), overrides);
  if (!topology.ok()) return topology.status();
  absl::StatusOr<Model> loaded = LoadModel(model, run.inputs().quantization());
  if (!loaded.ok()) return loaded.status();
  absl::StatusOr<Plan> plan = MakePlan(*topology, *loaded, OptionsOf(run.plan()));
  if (!plan.ok()) return plan.status();
  absl::StatusOr<Workload> workload =
      MakeWorkload(run.inputs().workload(), {.seed = run.inputs().seed()});
  if (!workload.ok()) return workload.status();
  return Scenario{.label = run.label(),
                  .topology = *std::move(topology),
                  .model = *std::move(loaded),
                  .plan = *std::move(plan),
                  .workload = *std::move(workload),
                  .trace_file = ""};
}

ControlTimes MeasuredControlTimes(const Timeline& timeline, int stages) {
  std::vector<double> known;  // when tokens were at the head
  double return_s = 0;
  for (const TransferSlice& slice : timeline.transfers) {
    if (slice.from_stage != stages - 1 || slice.to_stage != 0) continue;
    known.push_back(slice.end_s);
    return_s += slice.end_s - slice.start_s;
  }
  std::sort(known.begin(), known.end());
  std::vector<StageSlice> first;
  for (const StageSlice& slice : timeline.stages) {
    if (slice.stage == 0) first.push_back(slice);
  }
  std::sort(first.begin(), first.end(),
            [](const auto& a, const auto& b) { return a.start_s < b.start_s; });
  double launch_s = 0;
  int launches = 0;
  double idle_since = 0;
  for (const StageSlice& slice : first) {
    const auto after = std::upper_bound(known.begin(), known.end(), slice.start_s);
    if (after != known.begin() && *(after - 1) > idle_since) {
      launch_s += slice.start_s - *(after - 1);
      ++launches;
    }
    idle_since = slice.end_s;
  }
  return {.launch_s = launches == 0 ? 0 : launch_s / launches,
          .return_s = known.empty() ? 0 : return_s / static_cast<double>(known.size())};
}

absl::StatusOr<RehearsedRun> Forecast(Scenario scenario, const Timeline& measured) {
  absl::StatusOr<MeasuredStageTimes> times =
      MeasuredStageTimes::Fit(static_cast<int>(scenario.plan.stages.size()), measured.stages);
  if (!times.ok()) return times.status();
  scenario.measured = std::make_shared<const MeasuredStageTimes>(*std::move(times));
  scenario.control = MeasuredControlTimes(measured, static_cast<int>(scenario.plan.stages.size()));
  const TemporaryFile trace;
  scenario.trace_file = trace.path();
  absl::StatusOr<Result> result = Simulate(scenario);
  if (!result.ok()) return result.status();
  absl::StatusOr<Timeline> timeline = ReadTrace(trace.path());
  if (!timeline.ok()) return timeline.status();
  return RehearsedRun{.result = *std::move(result), .timeline = *std::move(timeline)};
}

absl::StatusOr<double> HopBytesPerSecond(const Timeline& timeline, int from_stage, int to_stage,
                                         int64_t min_bytes) {
  std::vector<TransferSlice> messages;
  for (const TransferSlice& slice : timeline.transfers) {
    if (slice.from_stage == from_stage && slice.to_stage == to_stage) messages.push_back(slice);
  }
  std::sort(messages.begin(), messages.end(),
            [](const auto& a, const auto& b) { return a.start_s < b.start_s; });
  std::vector<double> rates;
  double free_s = 0;
  for (const TransferSlice& message : messages) {
    const double seconds = message.end_s - std::max(message.start_s, free_s);
    free_s = std::max(free_s, message.end_s);
    if (message.bytes >= min_bytes && seconds > 0) {
      rates.push_back(static_cast<double>(message.bytes) / seconds);
    }
  }
  if (rates.empty()) {
    return absl::NotFoundError(absl::StrCat("no message of ", min_bytes,
                                            " bytes or more from stage ", from_stage, " to ",
                                            to_stage, ": give the run longer prompts or chunks"));
  }
  return Median(rates);
}

}  // namespace fabricast
