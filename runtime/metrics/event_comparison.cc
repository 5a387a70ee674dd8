#include "runtime/metrics/event_comparison.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/metrics/critical_path.h"
#include "runtime/metrics/distribution.h"
#include "runtime/metrics/timeline.h"

namespace fabricast {
namespace {

enum class EventKind {
  kDecode,
  kPrefill,
  kMixed,
  kWait,
  kSendWait,
  kHop,
  kTurnaround,
  kStep,
};

struct EventRow {
  EventKind kind;
  int stage;  // -1: of none

  std::string what() const {
    switch (kind) {
      case EventKind::kDecode:
      case EventKind::kPrefill:
      case EventKind::kMixed:
        return "compute";
      case EventKind::kWait:
        return "wait";
      case EventKind::kSendWait:
        return "send wait";
      case EventKind::kHop:
        return "hop";
      case EventKind::kTurnaround:
        return "turnaround";
      case EventKind::kStep:
        return "step";
    }
    return "";
  }
  std::string phase() const {
    return kind == EventKind::kDecode    ? "decode"
           : kind == EventKind::kPrefill ? "prefill"
           : kind == EventKind::kMixed   ? "mixed"
                                         : "";
  }
};

std::vector<EventRow> RowsOf(int stages) {
  std::vector<EventRow> rows;
  for (int stage = 0; stage < stages; ++stage) {
    for (const EventKind kind : {EventKind::kDecode, EventKind::kPrefill, EventKind::kMixed,
                                 EventKind::kWait, EventKind::kSendWait, EventKind::kHop}) {
      rows.push_back({kind, stage});
    }
  }
  rows.push_back({EventKind::kTurnaround, -1});
  rows.push_back({EventKind::kStep, -1});
  return rows;
}

EventKind ComputeKind(const RunEvents::Step& step) {
  if (step.prefills == 0) return EventKind::kDecode;
  return step.decodes == 0 ? EventKind::kPrefill : EventKind::kMixed;
}

// An event of a micro-batch; what did not happen starts never.
struct Event {
  int64_t start_ns = kNever;
  int64_t end_ns = kNever;
  bool happened() const { return start_ns != kNever && end_ns != kNever; }
  int64_t duration_ns() const { return end_ns - start_ns; }
};

// The events of a run by step and row.
class EventTable {
 public:
  explicit EventTable(const RunEvents& run) : run_(run), tokens_computed_ns_(run.steps.size()) {
    // When the last stage had computed the latest of the tokens that a step decodes with.
    std::vector<int64_t> sampled_ns(run.requests.size(), kNever);
    for (int step = 0; step < steps(); ++step) {
      int64_t& latest = tokens_computed_ns_[step];
      latest = kNever;
      for (const RunEvents::Entry& entry : run.EntriesOf(step)) {
        if (entry.decode) latest = std::max(latest, sampled_ns[entry.request]);
        if (entry.samples) sampled_ns[entry.request] = run.At(step, run.stages - 1).computed_ns;
      }
    }
  }

  int steps() const { return static_cast<int>(run_.steps.size()); }

  Event At(int step, const EventRow& row) const {
    const RunEvents::StageTimes& times = run_.At(step, std::max(0, row.stage));
    switch (row.kind) {
      case EventKind::kDecode:
      case EventKind::kPrefill:
      case EventKind::kMixed:
        if (ComputeKind(run_.steps[step]) != row.kind) return {};
        return {times.started_ns, times.computed_ns};
      case EventKind::kWait:
        return {times.ready_ns, times.started_ns};
      case EventKind::kSendWait:
        if (run_.stages == 1) return {};
        return {times.computed_ns, times.sent_ns};
      case EventKind::kHop:
        return {times.sent_ns, times.delivered_ns};
      case EventKind::kTurnaround:
        return {tokens_computed_ns_[step], times.started_ns};
      case EventKind::kStep:
        return {run_.steps[step].launched_ns, run_.CompletedNs(step)};
    }
    return {};
  }

 private:
  const RunEvents& run_;
  std::vector<int64_t> tokens_computed_ns_;
};

double Seconds(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

std::string StepName(const RunEvents::Step& step) {
  return step.generation == 0 ? absl::StrCat(step.id)
                              : absl::StrCat(step.id, " (after loss ", step.generation, ")");
}

std::string PairName(const LinedUpRuns& runs, const StepPair& pair) {
  const std::string first = StepName(runs.first.steps[pair.first]);
  const std::string second = StepName(runs.second.steps[pair.second]);
  if (first == second) return absl::StrCat("micro-batch ", first);
  return absl::StrCat("micro-batches ", first, " and ", second);
}

Distribution DistributionOf(const EventTable& table, const EventRow& row) {
  Samples samples;
  for (int step = 0; step < table.steps(); ++step) {
    const Event event = table.At(step, row);
    if (event.happened()) samples.Add(Seconds(event.duration_ns()));
  }
  return samples.Summarize();
}

void AddDurations(const LinedUpRuns& runs, EventComparison& comparison) {
  const EventTable first(runs.first);
  const EventTable second(runs.second);
  for (const EventRow& row : RowsOf(runs.first.stages)) {
    DurationComparison out;
    out.set_what(row.what());
    out.set_stage(row.stage);
    out.set_phase(row.phase());
    *out.mutable_first() = DistributionOf(first, row);
    *out.mutable_second() = DistributionOf(second, row);
    if (out.first().count() == 0 && out.second().count() == 0) continue;
    Samples differences;
    Samples sizes;
    const StepPair* worst = nullptr;
    for (const StepPair& pair : runs.alignment.pairs) {
      if (!pair.alike) continue;
      const Event a = first.At(pair.first, row);
      const Event b = second.At(pair.second, row);
      if (!a.happened() || !b.happened()) continue;
      const double difference = Seconds(b.duration_ns() - a.duration_ns());
      differences.Add(difference);
      sizes.Add(std::fabs(difference));
      if (worst != nullptr && std::fabs(difference) <= std::fabs(out.worst_s())) continue;
      out.set_worst_s(difference);
      worst = &pair;
    }
    const Distribution summary = differences.Summarize();
    out.set_lined_up(summary.count());
    out.set_difference_mean_s(summary.mean());
    out.set_difference_p50_s(summary.p50());
    out.set_difference_p90_s(sizes.Summarize().p90());
    if (worst != nullptr) out.set_worst_at(PairName(runs, *worst));
    *comparison.add_durations() = out;
  }
}

// Of one metric: the mean over requests of what it is made of in each run.
class Sum {
 public:
  explicit Sum(int stages) : first_(stages), second_(stages) {}

  void Add(double first_s, const PathParts& first, double second_s, const PathParts& second) {
    ++requests_;
    first_s_ += first_s;
    second_s_ += second_s;
    first_.Add(first);
    second_.Add(second);
  }

  void AddTo(const std::string& metric, EventComparison& comparison) const {
    if (requests_ == 0) return;
    const double requests = static_cast<double>(requests_);
    Attribution& out = *comparison.add_attributions();
    out.set_metric(metric);
    out.set_requests(requests_);
    out.set_first_s(first_s_ / requests);
    out.set_second_s(second_s_ / requests);
    for (int stage = 0; stage < first_.stages(); ++stage) {
      for (int k = 0; k < PathParts::kKinds; ++k) {
        const auto kind = static_cast<PathKind>(k);
        const double first = first_.At(kind, stage);
        const double second = second_.At(kind, stage);
        if (first == 0 && second == 0) continue;
        const bool of_head = kind == PathKind::kHead || kind == PathKind::kQueue;
        Attribution::Part& part = *out.add_parts();
        part.set_what(PathKindName(kind));
        part.set_stage(of_head ? -1 : stage);
        part.set_phase(PathPhaseName(kind));
        part.set_first_s(first / requests);
        part.set_second_s(second / requests);
      }
    }
  }

 private:
  int64_t requests_ = 0;
  double first_s_ = 0;
  double second_s_ = 0;
  PathParts first_;
  PathParts second_;
};

void AddAttributions(const LinedUpRuns& runs, EventComparison& comparison) {
  const std::vector<RequestPath> first = ExplainRequests(runs.first);
  const std::vector<RequestPath> second = ExplainRequests(runs.second);
  Sum tpot(runs.first.stages);
  Sum ttft(runs.first.stages);
  for (size_t i = 0; i < first.size(); ++i) {
    const int match = runs.alignment.second_request[i];
    if (match < 0) continue;
    const RequestPath& a = first[i];
    const RequestPath& b = second[match];
    if (a.has_tpot && b.has_tpot) tpot.Add(a.tpot_s, a.tpot, b.tpot_s, b.tpot);
    if (a.has_ttft && b.has_ttft) ttft.Add(a.ttft_s, a.ttft, b.ttft_s, b.ttft);
  }
  tpot.AddTo("tpot.mean", comparison);
  ttft.AddTo("ttft.mean", comparison);
}

std::string DivergenceText(const LinedUpRuns& runs) {
  const Alignment& alignment = runs.alignment;
  std::string text;
  const auto add = [&](const std::string& label, const std::string& only) {
    if (only.empty()) return;
    absl::StrAppend(&text, text.empty() ? "" : "; ", "only ", label, " has ", only);
  };
  add(runs.first_label, alignment.only_in_first);
  add(runs.second_label, alignment.only_in_second);
  return text;
}

absl::StatusOr<RunEvents> EventsOf(const Result& result) {
  if (result.event_log().empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(result.label(),
                     " has no events: write it with `fabricast simulate --out FILE` or `fabricast "
                     "run --out FILE`"));
  }
  absl::StatusOr<RunEvents> events = ReadEvents(result.event_log(), result.stages_size());
  if (!events.ok()) {
    return absl::Status(events.status().code(),
                        absl::StrCat(result.label(), ": ", events.status().message()));
  }
  if (events->steps.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(result.label(), ": nothing ran in it"));
  }
  return events;
}

absl::Status FileError(const std::string& file) {
  return absl::UnavailableError(
      absl::StrCat(file,
                   ": the events could not be written; is the folder there, is there space and "
                   "permission?"));
}

}  // namespace

absl::StatusOr<LinedUpRuns> LineUp(const Result& first, const Result& second) {
  LinedUpRuns runs{.first_label = first.label(),
                   .second_label = second.label(),
                   .first = {},
                   .second = {},
                   .alignment = {}};
  const auto same = [&](const char* what, const std::string& a, const std::string& b) {
    if (a == b) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("not the same ", what, ": ", first.label(),
                                                   " has ", a, ", ", second.label(), " has ", b));
  };
  const Inputs& a = first.inputs();
  const Inputs& b = second.inputs();
  for (const absl::Status& status :
       {same("model", a.model(), b.model()),
        same("quantization", a.quantization(), b.quantization()),
        same("workload", a.workload_description(), b.workload_description()),
        same("number of stages", absl::StrCat(first.stages_size()),
             absl::StrCat(second.stages_size()))}) {
    if (!status.ok()) return status;
  }
  absl::StatusOr<RunEvents> first_events = EventsOf(first);
  if (!first_events.ok()) return first_events.status();
  absl::StatusOr<RunEvents> second_events = EventsOf(second);
  if (!second_events.ok()) return second_events.status();
  runs.first = *std::move(first_events);
  runs.second = *std::move(second_events);
  absl::StatusOr<Alignment> alignment = Align(runs.first, runs.second);
  if (!alignment.ok()) return alignment.status();
  runs.alignment = *std::move(alignment);
  return runs;
}

EventComparison CompareEvents(const LinedUpRuns& runs) {
  const Alignment& alignment = runs.alignment;
  EventComparison comparison;
  comparison.set_label(runs.second_label);
  comparison.set_first_micro_batches(static_cast<int64_t>(runs.first.steps.size()));
  comparison.set_second_micro_batches(static_cast<int64_t>(runs.second.steps.size()));
  comparison.set_same_micro_batches(alignment.same_steps);
  comparison.set_divergence(DivergenceText(runs));
  comparison.set_pairs(static_cast<int64_t>(alignment.pairs.size()));
  comparison.set_alike_pairs(std::count_if(alignment.pairs.begin(), alignment.pairs.end(),
                                           [](const StepPair& pair) { return pair.alike; }));
  comparison.set_first_alone(static_cast<int64_t>(alignment.first_alone.size()));
  comparison.set_second_alone(static_cast<int64_t>(alignment.second_alone.size()));
  AddDurations(runs, comparison);
  AddAttributions(runs, comparison);
  return comparison;
}

absl::Status WriteEvents(const LinedUpRuns& runs, const std::string& file) {
  std::ofstream out(file, std::ios::binary);
  out << "event,stage,phase,alike,first_generation,first_micro_batch,first_start_ns,first_ns,"
         "second_generation,second_micro_batch,second_start_ns,second_ns,tokens\n";
  const EventTable first(runs.first);
  const EventTable second(runs.second);
  const std::vector<EventRow> rows = RowsOf(runs.first.stages);
  const auto cells = [](const RunEvents& run, int step, const Event& event) {
    if (step < 0) return std::string(",,,");
    const RunEvents::Step& of = run.steps[step];
    if (!event.happened()) return absl::StrCat(of.generation, ",", of.id, ",,");
    return absl::StrCat(of.generation, ",", of.id, ",", event.start_ns, ",", event.duration_ns());
  };
  // A step of -1: there is none.
  const auto write = [&](int a, int b, bool alike, const std::string& tokens) {
    for (const EventRow& row : rows) {
      const Event first_event = a < 0 ? Event() : first.At(a, row);
      const Event second_event = b < 0 ? Event() : second.At(b, row);
      if (!first_event.happened() && !second_event.happened()) continue;
      out << row.what() << "," << (row.stage < 0 ? "" : absl::StrCat(row.stage)) << ","
          << row.phase() << "," << (alike ? 1 : 0) << "," << cells(runs.first, a, first_event)
          << "," << cells(runs.second, b, second_event) << ","
          << (row.kind == EventKind::kStep ? tokens : "") << "\n";
    }
  };
  for (const StepPair& pair : runs.alignment.pairs) {
    write(pair.first, pair.second, pair.alike,
          SharedTokens(runs.first, pair.first, runs.second, pair.second));
  }
  for (const int step : runs.alignment.first_alone) write(step, -1, false, "");
  for (const int step : runs.alignment.second_alone) write(-1, step, false, "");
  out.close();
  return out ? absl::OkStatus() : FileError(file);
}

absl::Status WriteLinedUpTrace(const LinedUpRuns& runs, const std::string& file) {
  // Track 2 s is stage s of the first run, 2 s + 1 that of the second; hops likewise.
  Timeline timeline;
  TrackNames names;
  const int stages = runs.first.stages;
  for (int stage = 0; stage < stages; ++stage) {
    const int next = (stage + 1) % stages;
    for (int world = 0; world < 2; ++world) {
      const std::string& label = world == 0 ? runs.first_label : runs.second_label;
      names.stages.push_back(absl::StrCat("stage ", stage, ": ", label));
      if (stages == 1) continue;
      names.hops.push_back({.from_stage = 2 * stage + world,
                            .to_stage = 2 * next + world,
                            .links = {static_cast<int>(names.links.size())}});
      names.links.push_back(absl::StrCat("hop ", stage, " to ", next, ": ", label));
    }
  }
  for (int world = 0; world < 2; ++world) {
    const RunEvents& run = world == 0 ? runs.first : runs.second;
    for (int step = 0; step < static_cast<int>(run.steps.size()); ++step) {
      const RunEvents::Step& of = run.steps[step];
      for (int stage = 0; stage < stages; ++stage) {
        const RunEvents::StageTimes& times = run.At(step, stage);
        if (times.computed_ns == kNever) break;
        timeline.stages.push_back({.stage = 2 * stage + world,
                                   .micro_batch = of.id,
                                   .start_s = Seconds(times.started_ns),
                                   .end_s = Seconds(std::max(times.started_ns, times.computed_ns)),
                                   .decodes = of.decodes,
                                   .prefill_tokens = of.prefill_tokens});
        if (stages == 1 || times.delivered_ns == kNever) continue;
        timeline.transfers.push_back({.from_stage = 2 * stage + world,
                                      .to_stage = 2 * ((stage + 1) % stages) + world,
                                      .micro_batch = of.id,
                                      .start_s = Seconds(times.sent_ns),
                                      .end_s = Seconds(std::max(times.sent_ns, times.delivered_ns)),
                                      .bytes = kBytesUnknown});
      }
    }
  }
  return WriteTrace(timeline, names, file);
}

}  // namespace fabricast
