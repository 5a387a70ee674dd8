#include "benchmarks/fabric_rehearsal/trace_file.h"

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace fabricast {
namespace {

using Json = nlohmann::json;

constexpr double kSecondsPerMicrosecond = 1e-6;

StageSlice StageOf(const Json& event) {
  const double start_s = event.at("ts").get<double>() * kSecondsPerMicrosecond;
  return {.stage = event.at("tid").get<int>(),
          .micro_batch = event.at("args").at("micro_batch").get<int64_t>(),
          .start_s = start_s,
          .end_s = start_s + event.at("dur").get<double>() * kSecondsPerMicrosecond,
          .decodes = event.at("args").at("decodes").get<int64_t>(),
          .prefill_tokens = event.at("args").at("prefill_tokens").get<int64_t>()};
}

// Named "mb 7: stage 0 to 1". False if the name is another.
bool TransferOf(const Json& event, TransferSlice& slice) {
  long micro_batch = 0;
  if (std::sscanf(event.at("name").get<std::string>().c_str(), "mb %ld: stage %d to %d",
                  &micro_batch, &slice.from_stage, &slice.to_stage) != 3) {
    return false;
  }
  slice.micro_batch = micro_batch;
  slice.start_s = event.at("ts").get<double>() * kSecondsPerMicrosecond;
  slice.end_s = slice.start_s + event.at("dur").get<double>() * kSecondsPerMicrosecond;
  slice.bytes = event.at("args").at("bytes").get<int64_t>();
  return true;
}

absl::Status Broken(const std::string& file, size_t event, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": traceEvents[", event, "]: ", what,
                                                 ": give what fabricast wrote for --trace"));
}

}  // namespace

absl::StatusOr<Timeline> ReadTrace(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(file, ": cannot be read; is it there?"));
  const Json document = Json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded() || !document.contains("traceEvents") ||
      !document["traceEvents"].is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": no trace: give what fabricast wrote for --trace"));
  }
  Timeline timeline;
  // The same micro-batch leaves a stage once, but numbers start again when a pipeline was lost.
  std::set<std::tuple<int64_t, int, double>> seen;
  const Json& events = document["traceEvents"];
  for (size_t i = 0; i < events.size(); ++i) {
    const Json& event = events[i];
    try {
      if (event.at("ph") != "X") continue;
      if (event.at("args").contains("micro_batch")) {
        timeline.stages.push_back(StageOf(event));
        continue;
      }
      TransferSlice slice{};
      if (!TransferOf(event, slice)) return Broken(file, i, "a slice of no known kind");
      if (seen.emplace(slice.micro_batch, slice.from_stage, slice.start_s).second) {
        timeline.transfers.push_back(slice);
      }
    } catch (const Json::exception& error) {
      return Broken(file, i, error.what());
    }
  }
  return timeline;
}

}  // namespace fabricast
