#include "runtime/workload/workload_spec.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "runtime/workload/numbers.h"

namespace fabricast {
namespace {

constexpr int64_t kMaxRequests = 10'000'000;
constexpr int64_t kMaxConcurrency = 1'000'000;
constexpr double kMinRate = 1e-6;
constexpr double kMaxRate = 1e6;
constexpr double kMinCv = 0.01;
constexpr double kMaxCv = 100;

std::string Escaped(absl::string_view text) { return absl::CHexEscape(text.substr(0, 200)); }

// The "key=value,..." of one specification. Keeps the first error; read everything, then ask for it
// once.
class Arguments {
 public:
  Arguments(absl::string_view kind, absl::string_view text, std::vector<absl::string_view> keys)
      : kind_(kind), keys_(std::move(keys)) {
    if (text.empty()) return;
    for (absl::string_view argument : absl::StrSplit(text, ',')) Add(argument);
  }

  int64_t Whole(absl::string_view key, int64_t lo, int64_t hi) {
    const std::optional<absl::string_view> value = Value(key);
    if (!value) return lo;
    const std::optional<int64_t> number = ParseWhole(*value);
    if (number && lo <= *number && *number <= hi) return *number;
    Fail(key,
         absl::StrFormat("\"%s\": give a whole number from %d to %d", Escaped(*value), lo, hi));
    return lo;
  }

  double Real(absl::string_view key, double lo, double hi) {
    const std::optional<absl::string_view> value = Value(key);
    if (!value) return lo;
    const std::optional<double> number = ParseReal(*value);
    if (number && lo <= *number && *number <= hi) return *number;
    Fail(key, absl::StrFormat("\"%s\": give a number from %g to %g", Escaped(*value), lo, hi));
    return lo;
  }

  LengthDistribution Length(absl::string_view key) {
    const std::optional<absl::string_view> value = Value(key);
    if (!value) return {};
    absl::StatusOr<LengthDistribution> length = LengthDistribution::Parse(*value);
    if (length.ok()) return *length;
    Fail(key, length.status().message());
    return {};
  }

  const absl::Status& status() const { return status_; }

 private:
  void Add(absl::string_view argument) {
    const std::pair<absl::string_view, absl::string_view> pair =
        absl::StrSplit(argument, absl::MaxSplits('=', 1));
    const auto& [key, value] = pair;
    if (std::find(keys_.begin(), keys_.end(), key) == keys_.end()) {
      return Fail(Escaped(key),
                  absl::StrCat("unknown: ", kind_, " takes ", absl::StrJoin(keys_, ", ")));
    }
    if (Find(key)) return Fail(key, "given twice: give it once");
    values_.push_back(pair);
  }

  std::optional<absl::string_view> Find(absl::string_view key) const {
    for (const auto& [name, value] : values_) {
      if (name == key) return value;
    }
    return std::nullopt;
  }

  std::optional<absl::string_view> Value(absl::string_view key) {
    const std::optional<absl::string_view> value = Find(key);
    if (!value) {
      Fail(key, absl::StrCat("missing: ", kind_, " takes ", absl::StrJoin(keys_, ", ")));
    }
    return value;
  }

  void Fail(absl::string_view key, absl::string_view why) {
    status_.Update(
        absl::InvalidArgumentError(absl::StrCat("workload ", kind_, ": ", key, ": ", why)));
  }

  absl::string_view kind_;
  std::vector<absl::string_view> keys_;
  std::vector<std::pair<absl::string_view, absl::string_view>> values_;
  absl::Status status_;
};

absl::StatusOr<WorkloadSpec> ParseClosed(absl::string_view text) {
  Arguments arguments("closed", text, {"concurrency", "requests", "input", "output"});
  SyntheticSpec spec;
  spec.arrivals = ClosedLoop{.concurrency = arguments.Whole("concurrency", 1, kMaxConcurrency)};
  spec.requests = arguments.Whole("requests", 1, kMaxRequests);
  spec.input = arguments.Length("input");
  spec.output = arguments.Length("output");
  if (!arguments.status().ok()) return arguments.status();
  return spec;
}

absl::StatusOr<WorkloadSpec> ParseRandom(bool poisson, absl::string_view text) {
  std::vector<absl::string_view> keys = {"rate", "requests", "input", "output"};
  if (!poisson) keys.insert(keys.begin() + 1, "cv");
  Arguments arguments(poisson ? "poisson" : "gamma", text, std::move(keys));
  RandomArrivals arrivals;
  arrivals.poisson = poisson;
  arrivals.rate = arguments.Real("rate", kMinRate, kMaxRate);
  if (!poisson) arrivals.cv = arguments.Real("cv", kMinCv, kMaxCv);
  SyntheticSpec spec;
  spec.arrivals = arrivals;
  spec.requests = arguments.Whole("requests", 1, kMaxRequests);
  spec.input = arguments.Length("input");
  spec.output = arguments.Length("output");
  if (!arguments.status().ok()) return arguments.status();
  return spec;
}

absl::StatusOr<WorkloadSpec> TraceOf(TraceFormat format, absl::string_view file, bool bundled) {
  if (file.empty()) {
    return absl::InvalidArgumentError("workload: no file is named: give azure:FILE or jsonl:FILE");
  }
  if (file.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("workload \"", Escaped(file), "\": a file's name has no NUL: give another"));
  }
  return TraceSpec{.format = format, .file = std::string(file), .bundled = bundled};
}

}  // namespace

std::string SyntheticSpec::Description() const {
  std::string how;
  if (const auto* closed = std::get_if<ClosedLoop>(&arrivals)) {
    how = absl::StrCat("closed loop, ", closed->concurrency, " at a time");
  } else {
    const auto& random = std::get<RandomArrivals>(arrivals);
    how = absl::StrCat(random.poisson ? "Poisson" : "gamma", " arrivals, ", random.rate, "/s");
    if (!random.poisson) absl::StrAppend(&how, ", CV ", random.cv);
  }
  return absl::StrCat(how, ", ", requests, requests == 1 ? " request, " : " requests, ",
                      input.Description(), " in, ", output.Description(), " out");
}

absl::StatusOr<WorkloadSpec> ParseWorkloadSpec(absl::string_view spec) {
  absl::string_view rest = spec;
  if (absl::ConsumePrefix(&rest, "closed:")) return ParseClosed(rest);
  if (absl::ConsumePrefix(&rest, "poisson:")) return ParseRandom(/*poisson=*/true, rest);
  if (absl::ConsumePrefix(&rest, "gamma:")) return ParseRandom(/*poisson=*/false, rest);
  if (absl::ConsumePrefix(&rest, "azure:")) return TraceOf(TraceFormat::kAzureCsv, rest, false);
  if (absl::ConsumePrefix(&rest, "jsonl:")) return TraceOf(TraceFormat::kJsonl, rest, false);
  if (absl::ConsumePrefix(&rest, "bundled:")) return TraceOf(TraceFormat::kAzureCsv, rest, true);
  if (absl::EndsWith(rest, ".csv")) return TraceOf(TraceFormat::kAzureCsv, rest, false);
  if (absl::EndsWith(rest, ".jsonl")) return TraceOf(TraceFormat::kJsonl, rest, false);
  return absl::NotFoundError(absl::StrCat(
      "workload \"", Escaped(spec),
      "\": not in the catalogue: give one of its names, closed:..., poisson:..., gamma:..., "
      "azure:FILE or jsonl:FILE"));
}

}  // namespace fabricast
