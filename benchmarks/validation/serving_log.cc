#include "benchmarks/validation/serving_log.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "runtime/metrics/distribution.h"

namespace fabricast {
namespace {

using nlohmann::json;

// Timestamps of one step differ by microseconds, steps by milliseconds.
constexpr double kSameStepS = 1e-4;
constexpr int64_t kLeastWindowSteps = 15;
constexpr int kSamplesOfWindow = 39;

json ParseJson(absl::string_view text) {
  return json::parse(text.begin(), text.end(), /*callback=*/nullptr, /*allow_exceptions=*/false);
}

absl::Status Number(const json& object, const char* field, absl::string_view where, double& value) {
  const auto found = object.is_object() ? object.find(field) : object.end();
  if (!object.is_object() || found == object.end() || !found->is_number()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": no number '", field, "'"));
  }
  value = found->get<double>();
  return absl::OkStatus();
}

absl::StatusOr<ServedRequest> ParseLine(absl::string_view line, absl::string_view where) {
  const json object = ParseJson(line);
  ServedRequest request;
  double prompt = 0;
  double output = 0;
  for (const auto& [field, value] : {std::pair<const char*, double*>{"input_toks", &prompt},
                                     {"output_toks", &output},
                                     {"arrival_time", &request.arrival_s},
                                     {"queued_ts", &request.queued_s},
                                     {"scheduled_ts", &request.scheduled_s},
                                     {"first_token_ts", &request.first_token_s},
                                     {"last_token_ts", &request.last_token_s}}) {
    if (absl::Status status = Number(object, field, where, *value); !status.ok()) return status;
  }
  if (prompt < 1 || output < 1) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": a request of ", prompt, " in and ",
                                                   output, " out; both must be 1 at least"));
  }
  if (request.queued_s > request.scheduled_s || request.scheduled_s > request.first_token_s ||
      request.first_token_s > request.last_token_s) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, ": times go back; queued, scheduled, first and last token must follow each other"));
  }
  request.prompt_tokens = std::llround(prompt);
  request.output_tokens = std::llround(output);
  return request;
}

// Puts both clocks on the first arrival.
void AlignClocks(std::vector<ServedRequest>& requests) {
  double offset = std::numeric_limits<double>::infinity();
  double start = std::numeric_limits<double>::infinity();
  for (const ServedRequest& request : requests) {
    offset = std::min(offset, request.queued_s - request.arrival_s);
    start = std::min(start, request.arrival_s);
  }
  for (ServedRequest& request : requests) {
    request.arrival_s -= start;
    for (double* time :
         {&request.queued_s, &request.scheduled_s, &request.first_token_s, &request.last_token_s}) {
      *time -= offset + start;
    }
  }
}

struct Running {
  double requests = 0;
  double context = 0;
};

// Those that decode at `time`, each with the share of its output that it has by then.
Running RunningAt(const std::vector<ServedRequest>& requests, double time) {
  Running running;
  for (const ServedRequest& request : requests) {
    if (request.first_token_s > time || request.last_token_s <= time) continue;
    const double share =
        (time - request.first_token_s) / (request.last_token_s - request.first_token_s);
    running.requests += 1;
    running.context += static_cast<double>(request.prompt_tokens) +
                       share * static_cast<double>(request.output_tokens);
  }
  return running;
}

// Requests by the step of their first tokens.
std::vector<std::vector<const ServedRequest*>> ByFirstToken(
    const std::vector<ServedRequest>& requests) {
  std::vector<const ServedRequest*> sorted;
  for (const ServedRequest& request : requests) sorted.push_back(&request);
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) {
    return a->first_token_s < b->first_token_s;
  });
  std::vector<std::vector<const ServedRequest*>> groups;
  for (const ServedRequest* request : sorted) {
    if (groups.empty() ||
        request->first_token_s - groups.back().front()->first_token_s > kSameStepS) {
      groups.emplace_back();
    }
    groups.back().push_back(request);
  }
  return groups;
}

}  // namespace

absl::StatusOr<ServingLog> ParseServingLog(absl::string_view meta, absl::string_view lines) {
  ServingLog log;
  const json object = ParseJson(meta);
  if (!object.is_object() || !object.contains("engine_kwargs")) {
    return absl::InvalidArgumentError("meta: not JSON with 'engine_kwargs'");
  }
  const json& options = object["engine_kwargs"];
  double max_running = 0;
  double max_batch_tokens = 0;
  absl::Status status = Number(options, "max_num_seqs", "meta: engine_kwargs", max_running);
  if (status.ok()) {
    status = Number(options, "max_num_batched_tokens", "meta: engine_kwargs", max_batch_tokens);
  }
  if (!status.ok()) return status;
  log.max_running = static_cast<int>(max_running);
  log.max_batch_tokens = std::llround(max_batch_tokens);
  log.model = object.value("model", "unknown");
  log.engine = absl::StrCat("vLLM ", object.value("vllm_version", "of unknown version"));

  int number = 0;
  for (const absl::string_view line : absl::StrSplit(lines, '\n')) {
    ++number;
    if (line.empty()) continue;
    absl::StatusOr<ServedRequest> request = ParseLine(line, absl::StrCat("line ", number));
    if (!request.ok()) return request.status();
    log.requests.push_back(*request);
  }
  if (log.requests.empty()) return absl::InvalidArgumentError("no requests in the log");
  AlignClocks(log.requests);
  std::stable_sort(log.requests.begin(), log.requests.end(),
                   [](const auto& a, const auto& b) { return a.arrival_s < b.arrival_s; });
  return log;
}

Workload ReplayOf(const ServingLog& log) {
  Workload workload;
  workload.name = "serving log";
  workload.description = absl::StrCat(log.requests.size(), " requests of a serving log");
  for (const ServedRequest& request : log.requests) {
    workload.requests.push_back({.arrival_s = request.arrival_s,
                                 .prompt_tokens = request.prompt_tokens,
                                 .output_tokens = request.output_tokens});
  }
  return workload;
}

Result Measured(const ServingLog& log) {
  Result result;
  result.set_kind(MEASURED);
  Samples ttft, tpot, e2e, queue_wait;
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  double end_s = 0;
  for (const ServedRequest& request : log.requests) {
    ttft.Add(request.first_token_s - request.arrival_s);
    e2e.Add(request.last_token_s - request.arrival_s);
    queue_wait.Add(request.scheduled_s - request.arrival_s);
    if (request.output_tokens > 1) {
      tpot.Add((request.last_token_s - request.first_token_s) /
               static_cast<double>(request.output_tokens - 1));
    }
    prompt_tokens += request.prompt_tokens;
    output_tokens += request.output_tokens;
    end_s = std::max(end_s, request.last_token_s);
  }
  const auto count = static_cast<int64_t>(log.requests.size());
  result.set_requests(count);
  result.set_finished(count);
  result.set_prompt_tokens(prompt_tokens);
  result.set_output_tokens(output_tokens);
  *result.mutable_ttft() = ttft.Summarize();
  *result.mutable_tpot() = tpot.Summarize();
  *result.mutable_e2e() = e2e.Summarize();
  *result.mutable_queue_wait() = queue_wait.Summarize();
  result.set_duration_s(end_s);
  if (end_s > 0) {
    result.set_output_tokens_per_s(static_cast<double>(output_tokens) / end_s);
    result.set_total_tokens_per_s(static_cast<double>(prompt_tokens + output_tokens) / end_s);
    result.set_requests_per_s(static_cast<double>(count) / end_s);
  }
  return result;
}

std::vector<DecodeWindow> DecodeWindows(const ServingLog& log) {
  const auto prompt_between = [&log](double from, double to) {
    return std::any_of(log.requests.begin(), log.requests.end(), [&](const ServedRequest& other) {
      return other.first_token_s > from && other.first_token_s < to;
    });
  };
  // While prompts still come, one may be in work whose first token lies outside the window.
  double last_first_token_s = 0;
  for (const ServedRequest& request : log.requests) {
    last_first_token_s = std::max(last_first_token_s, request.first_token_s);
  }
  std::vector<DecodeWindow> windows;
  for (const auto& group : ByFirstToken(log.requests)) {
    for (const ServedRequest* a : group) {
      for (const ServedRequest* b : group) {
        const int64_t steps = b->output_tokens - a->output_tokens;
        if (steps < kLeastWindowSteps || a->last_token_s < last_first_token_s ||
            prompt_between(a->last_token_s, b->last_token_s)) {
          continue;
        }
        DecodeWindow window{
            .steps = steps,
            .step_s = (b->last_token_s - a->last_token_s) / static_cast<double>(steps)};
        for (int i = 1; i <= kSamplesOfWindow; ++i) {
          const double share = i / (kSamplesOfWindow + 1.0);
          const Running running = RunningAt(
              log.requests, a->last_token_s + share * (b->last_token_s - a->last_token_s));
          window.requests += running.requests / kSamplesOfWindow;
          window.context += running.context / kSamplesOfWindow;
        }
        windows.push_back(window);
      }
    }
  }
  std::stable_sort(windows.begin(), windows.end(),
                   [](const auto& a, const auto& b) { return a.requests < b.requests; });
  return windows;
}

std::vector<PromptStep> PromptSteps(const ServingLog& log) {
  std::vector<double> boundaries;
  for (const ServedRequest& request : log.requests) {
    boundaries.push_back(request.first_token_s);
    boundaries.push_back(request.last_token_s);
  }
  std::sort(boundaries.begin(), boundaries.end());
  std::vector<PromptStep> steps;
  for (const auto& group : ByFirstToken(log.requests)) {
    const double end = group.front()->first_token_s;
    PromptStep step;
    int64_t tokens = 0;
    double scheduled_first = end;
    double scheduled_last = 0;
    for (const ServedRequest* request : group) {
      step.prompts.push_back(request->prompt_tokens);
      tokens += request->prompt_tokens;
      scheduled_first = std::min(scheduled_first, request->scheduled_s);
      scheduled_last = std::max(scheduled_last, request->scheduled_s);
    }
    // All taken in together: else the prompt of one began in an earlier step.
    if (scheduled_last - scheduled_first > 10 * kSameStepS) continue;
    // Part of a longer prompt may share the step.
    const bool shared =
        std::any_of(log.requests.begin(), log.requests.end(), [&](const ServedRequest& other) {
          return other.scheduled_s < scheduled_last + 10 * kSameStepS &&
                 other.first_token_s > end + kSameStepS;
        });
    if (shared) continue;
    const Running running = RunningAt(log.requests, end - kSameStepS);
    step.decodes = std::llround(running.requests);
    step.context = running.context;
    if (step.decodes == 0 || tokens + step.decodes > log.max_batch_tokens) continue;
    const auto before = std::lower_bound(boundaries.begin(), boundaries.end(), end - kSameStepS);
    if (before == boundaries.begin()) continue;
    const double start = *std::prev(before);
    // A boundary at the time of scheduling is the start of the step before.
    if (start < scheduled_first + 10 * kSameStepS) continue;
    step.step_s = end - start;
    steps.push_back(step);
  }
  return steps;
}

}  // namespace fabricast
