#include "tools/fabricast/event_report.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tools/fabricast/table.h"

namespace fabricast {
namespace {

// Kinds of events that take less than this share of a micro-batch's time in both runs are not
// shown, nor are parts of a latency below it.
constexpr double kShown = 0.002;
// Parts that a sentence names.
constexpr size_t kNamedParts = 3;
// Times are whole nanoseconds.
constexpr double kNothing = 0.5e-9;

std::string Signed(double seconds) {
  if (std::fabs(seconds) < kNothing) return FormatSeconds(0);
  return absl::StrCat(seconds > 0 ? "+" : "", FormatSeconds(seconds));
}

std::string StageEvent(const std::string& what, int stage, const std::string& phase, int stages) {
  if (what == "hop") {
    return stage + 1 == stages ? absl::StrCat("hop ", stage, " to the head")
                               : absl::StrCat("hop ", stage, " to ", stage + 1);
  }
  return absl::StrCat("stage ", stage, " ", phase.empty() ? what : phase);
}

std::string LabelOf(const DurationComparison& duration, int stages) {
  if (duration.what() == "turnaround") return "turnaround, last stage to first";
  if (duration.what() == "step") return "micro-batch, launch to tokens";
  return StageEvent(duration.what(), duration.stage(), duration.phase(), stages);
}

std::string LabelOf(const Attribution::Part& part, int stages) {
  if (part.what() == "head") return "head, until it launches";
  if (part.what() == "queue") return "queue, until the first launch";
  return StageEvent(part.what(), part.stage(), part.phase(), stages);
}

int StagesOf(const EventComparison& events) {
  int stages = 0;
  for (const DurationComparison& duration : events.durations()) {
    stages = std::max(stages, duration.stage() + 1);
  }
  return stages;
}

void PrintDecisions(const std::string& first, const EventComparison& events, std::ostream& out) {
  const int64_t same = events.same_micro_batches();
  if (events.divergence().empty()) {
    out << absl::StrFormat("  All %d micro-batches hold the same in both.\n", same);
    return;
  }
  out << absl::StrFormat("  The first %d micro-batches hold the same in both, of %d and %d.\n",
                         same, events.first_micro_batches(), events.second_micro_batches())
      << absl::StrFormat("  In micro-batch %d, %s.\n", same, events.divergence())
      << absl::StrFormat(
             "  From there on they are lined up by tokens: %d pairs of micro-batches share some, "
             "and "
             "in %d of these\n  both hold as many decodes and prefill tokens: differences are of "
             "them.\n",
             events.pairs() - same, events.alike_pairs() - same);
  const auto alone = [&](const std::string& label, int64_t count) {
    if (count == 0) return;
    out << absl::StrFormat("  %d of %s share no token with the other run.\n", count, label);
  };
  alone(first, events.first_alone());
  alone(events.label(), events.second_alone());
}

void PrintDurations(const std::string& first, const EventComparison& events, int stages,
                    std::ostream& out) {
  double step_s = 0;
  for (const DurationComparison& duration : events.durations()) {
    if (duration.what() != "step") continue;
    step_s = std::max(duration.first().mean(), duration.second().mean());
  }
  Table table;
  table.Section("Event by event: medians of all; differences of those lined up");
  table.Row("", {first, events.label(), "change", "difference", "90 % within", "worst", "events",
                 "worst at"});
  for (const DurationComparison& duration : events.durations()) {
    const double mean_s =
        std::max(std::fabs(duration.first().mean()), std::fabs(duration.second().mean()));
    if (duration.what() != "compute" && mean_s < kShown * step_s) continue;
    const double a = duration.first().p50();
    const double b = duration.second().p50();
    const auto median = [](const Distribution& of) {
      return of.count() > 0 ? FormatSeconds(of.p50()) : "-";
    };
    std::vector<std::string> cells = {median(duration.first()), median(duration.second()),
                                      duration.lined_up() > 0 ? FormatChange(a, b) : ""};
    if (duration.lined_up() > 0) {
      cells.insert(
          cells.end(),
          {Signed(duration.difference_p50_s()), FormatSeconds(duration.difference_p90_s()),
           Signed(duration.worst_s()), absl::StrCat(duration.lined_up()), duration.worst_at()});
    }
    table.Row(LabelOf(duration, stages), cells);
  }
  table.Print(out);
}

std::string MetricName(const std::string& metric) {
  return absl::StrCat("mean ", absl::AsciiStrToUpper(metric.substr(0, metric.find('.'))));
}

void PrintAttribution(const std::string& first, const EventComparison& events,
                      const Attribution& attribution, int stages, std::ostream& out) {
  const double a = attribution.first_s();
  const double b = attribution.second_s();
  const std::string name = MetricName(attribution.metric());
  Table table;
  table.Section(absl::StrFormat("What %s of %d requests is made of, along the critical path", name,
                                attribution.requests()));
  table.Row("", {first, events.label(), "difference", absl::StrCat("of ", name)});
  const auto row = [&](const std::string& label, double before, double after) {
    table.Row(label, {FormatSeconds(before), FormatSeconds(after), Signed(after - before),
                      a > 0 ? absl::StrFormat("%+.2f %%", 100 * (after - before) / a) : ""});
  };
  double rest_first = 0;
  double rest_second = 0;
  for (const Attribution::Part& part : attribution.parts()) {
    if (std::max(part.first_s(), part.second_s()) < kShown * std::max(a, b)) {
      rest_first += part.first_s();
      rest_second += part.second_s();
    } else {
      row(LabelOf(part, stages), part.first_s(), part.second_s());
    }
  }
  if (rest_first > 0 || rest_second > 0) row("the rest", rest_first, rest_second);
  row(name, a, b);
  table.Print(out);
}

struct Cause {
  std::string name;
  double difference_s;
};

// "compute +0.35 ms, hop +0.05 ms", the largest first, without those that are nothing.
std::string CausesText(std::vector<Cause> causes, size_t at_most) {
  std::stable_sort(causes.begin(), causes.end(), [](const Cause& a, const Cause& b) {
    return std::fabs(a.difference_s) > std::fabs(b.difference_s);
  });
  if (causes.size() > at_most) causes.resize(at_most);
  std::string text;
  for (const Cause& cause : causes) {
    if (std::fabs(cause.difference_s) < kNothing) break;
    absl::StrAppend(&text, text.empty() ? "" : ", ", cause.name, " ", Signed(cause.difference_s));
  }
  return text;
}

// "mean TPOT +0.42 ms: compute +0.36 ms, hop +0.06 ms; most in stage 1 decode +0.35 ms, ...". The
// first list sums to the whole.
std::string Explanation(const Attribution& attribution, int stages) {
  std::vector<Cause> kinds;
  std::vector<Cause> parts;
  for (const Attribution::Part& part : attribution.parts()) {
    const double difference_s = part.second_s() - part.first_s();
    parts.push_back({LabelOf(part, stages), difference_s});
    auto kind = std::find_if(kinds.begin(), kinds.end(),
                             [&](const Cause& of) { return of.name == part.what(); });
    if (kind == kinds.end()) kind = kinds.insert(kinds.end(), {part.what(), 0});
    kind->difference_s += difference_s;
  }
  const std::string name = MetricName(attribution.metric());
  const std::string by_kind = CausesText(kinds, kinds.size());
  if (by_kind.empty()) return absl::StrCat(name, " does not differ");
  return absl::StrCat(name, " ", Signed(attribution.second_s() - attribution.first_s()), ": ",
                      by_kind, "; most in ", CausesText(parts, kNamedParts));
}

}  // namespace

void PrintEvents(const std::string& first_label, const EventComparison& events, std::ostream& out) {
  out << "\n" << first_label << " -> " << events.label() << ", event by event\n";
  if (!events.not_lined_up().empty()) {
    out << "  Not lined up: " << events.not_lined_up() << ".\n";
    return;
  }
  const int stages = StagesOf(events);
  PrintDecisions(first_label, events, out);
  PrintDurations(first_label, events, stages, out);
  for (const Attribution& attribution : events.attributions()) {
    PrintAttribution(first_label, events, attribution, stages, out);
  }
  out << "\n";
  for (const Attribution& attribution : events.attributions()) {
    out << Explanation(attribution, stages) << ".\n";
  }
}

}  // namespace fabricast
