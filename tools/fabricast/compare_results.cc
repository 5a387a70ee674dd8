#include "tools/fabricast/compare_results.h"

#include <algorithm>
#include <iostream>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/metrics/comparison.h"
#include "runtime/metrics/event_comparison.h"
#include "tools/fabricast/event_report.h"
#include "tools/fabricast/guards.h"
#include "tools/fabricast/report.h"
#include "tools/fabricast/result_file.h"

namespace fabricast {
namespace {

// Measured results say so in their labels, and no two labels are the same.
absl::StatusOr<std::vector<Result>> ReadResults(const std::vector<std::string>& files) {
  std::vector<Result> results;
  for (const std::string& file : files) {
    absl::StatusOr<Result> result = ReadResult(file);
    if (!result.ok()) return result.status();
    if (result->kind() == MEASURED) result->mutable_label()->append(" measured");
    const auto taken = [&] {
      return std::any_of(results.begin(), results.end(),
                         [&](const Result& other) { return other.label() == result->label(); });
    };
    if (taken() && !result->inputs().overrides().empty()) {
      absl::StrAppend(result->mutable_label(), " ",
                      absl::StrJoin(result->inputs().overrides(), " "));
    }
    const std::string label = result->label();
    for (int times = 2; taken(); ++times) {
      result->set_label(absl::StrCat(label, " (", times, ")"));
    }
    if (!result->partial().empty()) {
      result->add_warnings(absl::StrCat(file, ": partial (", result->partial(), ")"));
    }
    results.push_back(*std::move(result));
  }
  return results;
}

std::string LayersOf(const Result& result) {
  return absl::StrJoin(result.plan().stages(), "/", [](std::string* out, const StagePlan& stage) {
    absl::StrAppend(out, stage.num_layers());
  });
}

std::string GpusOf(const Result& result) {
  return absl::StrJoin(result.plan().stages(), "/", [](std::string* out, const StagePlan& stage) {
    absl::StrAppend(out, stage.gpus_size());
  });
}

// What the results were made with differs: a comparison of two worlds, or a mistake.
void WarnOfDifferences(std::vector<Result>& results) {
  for (size_t i = 1; i < results.size(); ++i) {
    const auto differs = [&](const std::string& field, const auto& of) {
      const std::string a = absl::StrCat(of(results[0]));
      const std::string b = absl::StrCat(of(results[i]));
      if (a == b) return;
      results[0].add_warnings(absl::StrCat("not the same ", field, ": ", results[0].label(),
                                           " has ", a, ", ", results[i].label(), " has ", b));
    };
    differs("model", [](const Result& r) { return r.inputs().model(); });
    differs("quantization", [](const Result& r) { return r.inputs().quantization(); });
    differs("workload", [](const Result& r) { return r.inputs().workload_description(); });
    differs("seed", [](const Result& r) { return r.inputs().seed(); });
    differs("number of stages", [](const Result& r) { return r.stages_size(); });
    if (results[0].stages_size() == results[i].stages_size()) {
      differs("split of layers", LayersOf);
      differs("number of GPUs a stage", GpusOf);
    }
    differs("micro-batches in flight", [](const Result& r) { return r.plan().max_in_flight(); });
    differs("token budget", [](const Result& r) { return r.plan().max_batch_tokens(); });
    differs("prefill chunk", [](const Result& r) { return r.plan().max_chunk_tokens(); });
    differs("limit of running requests", [](const Result& r) { return r.plan().max_running(); });
    differs("KV cache", [](const Result& r) {
      return absl::StrCat(r.plan().kv_blocks(), " blocks of ", r.plan().kv_block_tokens(),
                          " tokens");
    });
  }
}

// Lines up each result with the first.
absl::Status AddEvents(const CompareResultsFlags& flags, const std::vector<Result>& results,
                       Comparison& comparison) {
  const bool wanted = !flags.events_file.empty() || !flags.trace_file.empty();
  if (wanted && results.size() != 2) {
    return absl::InvalidArgumentError("--events and --trace line up two results: name two");
  }
  for (size_t i = 1; i < results.size(); ++i) {
    const absl::StatusOr<LinedUpRuns> runs = LineUp(results[0], results[i]);
    if (!runs.ok()) {
      if (wanted) return runs.status();
      EventComparison& none = *comparison.add_events();
      none.set_label(results[i].label());
      none.set_not_lined_up(std::string(runs.status().message()));
      continue;
    }
    *comparison.add_events() = CompareEvents(*runs);
    if (!flags.events_file.empty()) {
      if (absl::Status status = WriteEvents(*runs, flags.events_file); !status.ok()) return status;
    }
    if (!flags.trace_file.empty()) {
      absl::Status status = WriteLinedUpTrace(*runs, flags.trace_file);
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace

int CompareResults(const CompareResultsFlags& flags) {
  absl::StatusOr<std::vector<Condition>> conditions =
      ParseConditions(flags.fail_if, /*baseline=*/true);
  if (!conditions.ok()) return Fail(conditions.status());
  absl::StatusOr<std::vector<Result>> results = ReadResults(flags.files);
  if (!results.ok()) return Fail(results.status());
  WarnOfDifferences(*results);
  Comparison comparison = Compare(*results);
  if (absl::Status status = AddEvents(flags, *results, comparison); !status.ok()) {
    return Fail(status);
  }
  if (flags.format == Format::kJson) {
    for (Result& result : *comparison.mutable_results()) result.clear_event_log();
    PrintJson(comparison);
  } else {
    PrintResults(*results, std::cout);
    for (const EventComparison& events : comparison.events()) {
      PrintEvents(comparison.results(0).label(), events, std::cout);
    }
    PrintConclusions(comparison, std::cout);
  }
  absl::StatusOr<int> status = CheckConditions(*conditions, *results);
  return status.ok() ? *status : Fail(status.status());
}

}  // namespace fabricast
