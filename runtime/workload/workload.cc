#include "runtime/workload/workload.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "boost/random/gamma_distribution.hpp"
#include "boost/random/mersenne_twister.hpp"
#include "runtime/workload/bundled_traces.h"
#include "runtime/workload/trace.h"
#include "runtime/workload/workload_spec.h"

namespace fabricast {
namespace {

using Random = boost::random::mt19937_64;

// Arrivals and lengths have streams of their own, so that another rate leaves every length as it
// was.
enum class Stream : uint64_t { kArrivals = 1, kInput = 2, kOutput = 3 };

// SplitMix64 (Steele, Lea and Flood, 2014) of seed and stream: neighbouring seeds give unrelated
// generators.
Random RandomOf(uint64_t seed, Stream stream) {
  uint64_t z = seed + static_cast<uint64_t>(stream) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return Random(z ^ (z >> 31));
}

// The first request arrives at 0. Gamma with shape k and scale theta has mean k theta = 1 / rate
// and coefficient of variation 1 / sqrt(k). Gaps are whole nanoseconds, so that the last bits of
// libm's functions do not show.
void DrawArrivals(const RandomArrivals& arrivals, uint64_t seed, std::vector<Request>& requests) {
  Random random = RandomOf(seed, Stream::kArrivals);
  const double shape = 1 / (arrivals.cv * arrivals.cv);
  boost::random::gamma_distribution<double> gap_s(shape, 1 / (arrivals.rate * shape));
  double now_ns = 0;
  for (Request& request : requests) {
    request.arrival_s = now_ns / 1e9;
    now_ns += std::round(gap_s(random) * 1e9);
  }
}

Workload Draw(const SyntheticSpec& spec, uint64_t seed) {
  Workload workload;
  workload.description = spec.Description();
  workload.requests.resize(spec.requests);
  Random input = RandomOf(seed, Stream::kInput);
  Random output = RandomOf(seed, Stream::kOutput);
  for (Request& request : workload.requests) {
    request.prompt_tokens = spec.input.Draw(input);
    request.output_tokens = spec.output.Draw(output);
  }
  if (const auto* closed = std::get_if<ClosedLoop>(&spec.arrivals)) {
    workload.concurrency = static_cast<int>(closed->concurrency);
  } else {
    DrawArrivals(std::get<RandomArrivals>(spec.arrivals), seed, workload.requests);
  }
  return workload;
}

absl::StatusOr<std::string> TextOf(const TraceSpec& spec) {
  if (!spec.bundled) return ReadTraceFile(spec.file);
  for (const EmbeddedFile& trace : BundledTraces()) {
    if (absl::EndsWith(trace.path, absl::StrCat("/", spec.file))) {
      return std::string(trace.contents);
    }
  }
  return absl::NotFoundError(absl::StrCat("bundled:", spec.file, ": no such trace"));
}

absl::StatusOr<Workload> Read(const TraceSpec& spec) {
  const absl::StatusOr<std::string> text = TextOf(spec);
  if (!text.ok()) return text.status();
  absl::StatusOr<Trace> trace = spec.format == TraceFormat::kAzureCsv
                                    ? ParseAzureCsv(spec.file, *text)
                                    : ParseJsonl(spec.file, *text);
  if (!trace.ok()) return trace.status();
  Workload workload;
  workload.requests = std::move(trace->requests);
  workload.warnings = std::move(trace->warnings);
  double prompt_tokens = 0;
  double output_tokens = 0;
  for (const Request& request : workload.requests) {
    prompt_tokens += request.prompt_tokens;
    output_tokens += request.output_tokens;
  }
  const double count = workload.requests.size();
  workload.description =
      absl::StrFormat("trace %s, %d requests in %.0f s, on average %.0f in, %.0f out", spec.file,
                      workload.requests.size(), workload.requests.back().arrival_s,
                      prompt_tokens / count, output_tokens / count);
  return workload;
}

absl::StatusOr<Workload> MakeFrom(const WorkloadSpec& spec, uint64_t seed) {
  if (const auto* trace = std::get_if<TraceSpec>(&spec)) return Read(*trace);
  return Draw(std::get<SyntheticSpec>(spec), seed);
}

absl::Status CheckOptions(const WorkloadOptions& options) {
  // Comparisons are written so that NaN fails them.
  if (!(options.rate_scale > 0 && options.rate_scale <= 1e9)) {
    return absl::InvalidArgumentError(absl::StrCat("workload: rate_scale: ", options.rate_scale,
                                                   ": give a number greater than 0, up to 1e9"));
  }
  if (!(options.window_start_s >= 0 && options.window_start_s < options.window_end_s)) {
    return absl::InvalidArgumentError(
        absl::StrCat("workload: window: ", options.window_start_s, " to ", options.window_end_s,
                     ": give a start of at least 0 and an end after it"));
  }
  if (options.max_requests < 0) {
    return absl::InvalidArgumentError(absl::StrCat("workload: max_requests: ", options.max_requests,
                                                   ": give 0 for all, or a number of requests"));
  }
  return absl::OkStatus();
}

// Cuts an open-loop workload to the window and scales its rate.
absl::Status CutAndScale(const WorkloadOptions& options, Workload& workload) {
  const WorkloadOptions defaults;
  const bool windowed = options.window_start_s != defaults.window_start_s ||
                        options.window_end_s != defaults.window_end_s;
  if (!windowed && options.rate_scale == 1) return absl::OkStatus();
  if (workload.concurrency > 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "workload ", workload.name, ": ", windowed ? "window" : "rate_scale",
        ": a closed loop has no arrival times: leave it out, or use an open-loop workload"));
  }
  std::vector<Request>& requests = workload.requests;
  const double last_s = requests.back().arrival_s;
  requests.erase(std::remove_if(requests.begin(), requests.end(),
                                [&](const Request& request) {
                                  return request.arrival_s < options.window_start_s ||
                                         request.arrival_s >= options.window_end_s;
                                }),
                 requests.end());
  if (requests.empty()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "workload %s: window: no request arrives from %g to %g s: the last arrives at %g s",
        workload.name, options.window_start_s, options.window_end_s, last_s));
  }
  for (Request& request : requests) {
    request.arrival_s = (request.arrival_s - options.window_start_s) / options.rate_scale;
  }
  if (windowed) {
    absl::StrAppendFormat(&workload.description, ", window %g to %g s: %d requests",
                          options.window_start_s, std::min(options.window_end_s, last_s),
                          requests.size());
  }
  if (options.rate_scale != 1) {
    absl::StrAppend(&workload.description, ", ", options.rate_scale, " times the rate");
  }
  return absl::OkStatus();
}

void KeepFirst(int64_t max_requests, Workload& workload) {
  if (max_requests == 0 || max_requests >= static_cast<int64_t>(workload.requests.size())) return;
  workload.requests.resize(max_requests);
  absl::StrAppend(&workload.description, ", the first ", max_requests, " requests");
}

std::string CatalogueNames() {
  return absl::StrJoin(WorkloadCatalogue(), ", ", [](std::string* out, const WorkloadName& entry) {
    absl::StrAppend(out, entry.name);
  });
}

}  // namespace

absl::StatusOr<Workload> MakeWorkload(absl::string_view spec, const WorkloadOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  absl::string_view meaning = spec;
  for (const WorkloadName& entry : WorkloadCatalogue()) {
    if (entry.name == spec) meaning = entry.spec;
  }
  const absl::StatusOr<WorkloadSpec> parsed = ParseWorkloadSpec(meaning);
  if (absl::IsNotFound(parsed.status())) {
    return absl::NotFoundError(
        absl::StrCat(parsed.status().message(), " (the catalogue has ", CatalogueNames(), ")"));
  }
  if (!parsed.ok()) return parsed.status();
  absl::StatusOr<Workload> workload = MakeFrom(*parsed, options.seed);
  if (!workload.ok()) return workload.status();
  workload->name = std::string(spec);
  if (absl::Status status = CutAndScale(options, *workload); !status.ok()) return status;
  KeepFirst(options.max_requests, *workload);
  return workload;
}

}  // namespace fabricast
