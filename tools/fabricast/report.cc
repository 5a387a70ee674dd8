#include "tools/fabricast/report.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/metrics/comparison.h"
#include "tools/fabricast/table.h"

namespace fabricast {
namespace {

using Value = std::function<double(const Result&)>;
using Formatter = std::string (*)(double);

constexpr double kShownUtilisation = 1e-4;
constexpr int kShownHops = 4;

std::string FormatRate(double per_second) { return absl::StrFormat("%.2f", per_second); }
std::string FormatCount(double count) { return absl::StrFormat("%.0f", count); }

// Writes rows of all results, with the change where there are two.
class Columns {
 public:
  Columns(absl::Span<const Result> results, Table& table) : results_(results), table_(table) {}

  void Row(const std::string& label, const Value& value, Formatter format,
           bool with_change = true) {
    std::vector<std::string> cells;
    for (const Result& result : results_) cells.push_back(format(value(result)));
    if (with_change && results_.size() == 2) {
      cells.push_back(FormatChange(value(results_[0]), value(results_[1])));
    }
    table_.Row(label, cells);
  }

  void Row(const std::string& label, const std::function<std::string(const Result&)>& text) {
    std::vector<std::string> cells;
    for (const Result& result : results_) cells.push_back(text(result));
    table_.Row(label, cells);
  }

 private:
  absl::Span<const Result> results_;
  Table& table_;
};

void LatencyRows(Columns& columns, absl::string_view name,
                 const Distribution& (Result::*distribution)() const) {
  const std::pair<absl::string_view, double (Distribution::*)() const> statistics[] = {
      {"mean", &Distribution::mean},
      {"p50", &Distribution::p50},
      {"p90", &Distribution::p90},
      {"p99", &Distribution::p99}};
  for (const auto& [statistic, value] : statistics) {
    columns.Row(
        absl::StrCat(name, " ", statistic),
        [&, value = value](const Result& r) { return ((r.*distribution)().*value)(); },
        FormatSeconds);
  }
}

std::string StageLabel(const Result& result, int stage) {
  return absl::StrCat("stage ", stage, " ", GpusText(result.plan().stages(stage)));
}

void StageRows(absl::Span<const Result> results, Columns& columns, Table& table) {
  int stages = results[0].stages_size();
  for (const Result& result : results) stages = std::min(stages, result.stages_size());
  table.Section("Stages: busy / bubble, whole run | steady state");
  for (int s = 0; s < stages; ++s) {
    columns.Row(StageLabel(results[0], s), [s](const Result& r) {
      const StageResult& stage = r.stages(s);
      std::string text = absl::StrFormat("%.1f / %.1f %%", 100 * stage.busy_fraction(),
                                         100 * stage.bubble_fraction());
      if (stage.has_steady_busy_fraction()) {
        absl::StrAppendFormat(&text, " | %.1f / %.1f %%", 100 * stage.steady_busy_fraction(),
                              100 * stage.steady_bubble_fraction());
      } else {
        absl::StrAppend(&text, " | none");
      }
      return text;
    });
  }
}

void HopRows(absl::Span<const Result> results, Columns& columns, Table& table) {
  int hops = results[0].hops_size();
  for (const Result& result : results) hops = std::min(hops, result.hops_size());
  if (hops == 0) return;
  std::vector<int> shown(hops);
  std::iota(shown.begin(), shown.end(), 0);
  if (hops > kShownHops) {
    std::stable_sort(shown.begin(), shown.end(), [&](int a, int b) {
      return results[0].hops(a).exposed_s() > results[0].hops(b).exposed_s();
    });
    shown.resize(kShownHops);
    table.Section(
        absl::StrFormat("Hops between stages: the %d most exposed of %d (--format=json has all)",
                        kShownHops, hops));
  } else {
    table.Section("Hops between stages");
  }
  for (int h : shown) {
    const HopResult& first = results[0].hops(h);
    const std::string name = absl::StrFormat("%d to %d%s ", first.from_stage(), first.to_stage(),
                                             first.to_stage() == 0 ? " (tokens back)" : "");
    columns.Row(name + "route", [h](const Result& r) {
      const HopResult& hop = r.hops(h);
      const bool staged = absl::StartsWith(hop.route(), "network") && !hop.gpudirect();
      return absl::StrCat(hop.route(), staged ? ", no GPUDirect" : "");
    });
    // Of a measured run the path's rate is not known.
    const bool known = std::all_of(results.begin(), results.end(), [h](const Result& r) {
      return r.hops(h).bottleneck_bytes_per_s() > 0;
    });
    if (known) {
      columns.Row(name + "GB/s", [h](const Result& r) {
        return absl::StrFormat("%.2f", r.hops(h).bottleneck_bytes_per_s() / 1e9);
      });
    }
    columns.Row(
        name + "bytes", [h](const Result& r) { return static_cast<double>(r.hops(h).bytes()); },
        FormatBytes);
    if (known) {
      columns.Row(
          name + "wire time", [h](const Result& r) { return r.hops(h).wire_s(); }, FormatSeconds);
    }
    columns.Row(
        name + "transfer time", [h](const Result& r) { return r.hops(h).transfer_s(); },
        FormatSeconds);
    columns.Row(
        name + "exposed", [h](const Result& r) { return r.hops(h).exposed_s(); }, FormatSeconds);
  }
}

void LinkRows(absl::Span<const Result> results, Columns& columns, Table& table) {
  // A measured run does not know them.
  if (std::all_of(results.begin(), results.end(),
                  [](const Result& r) { return r.links().empty(); })) {
    return;
  }
  std::set<std::string> names;
  std::vector<std::string> order;
  for (const Result& result : results) {
    for (const LinkResult& link : result.links()) {
      if (link.utilisation() < kShownUtilisation) continue;
      if (names.insert(link.name()).second) order.push_back(link.name());
    }
  }
  table.Section(order.empty() ? "Link utilisation: below 0.01 % everywhere"
                              : "Link utilisation, of 0.01 % and more");
  for (const std::string& name : order) {
    columns.Row(name, [&](const Result& r) -> std::string {
      for (const LinkResult& link : r.links()) {
        if (link.name() != name) continue;
        return absl::StrFormat("%.3f %% of %.0f Gbps", 100 * link.utilisation(), link.line_gbps());
      }
      return "-";
    });
  }
}

void MemoryRows(absl::Span<const Result> results, Columns& columns, Table& table) {
  table.Section(
      "Memory a GPU: weights, activations and reserve; KV cache, used at most of what is left");
  for (int i = 0; i < results[0].plan().memory_size(); ++i) {
    columns.Row(results[0].plan().memory(i).gpu(), [i](const Result& r) -> std::string {
      if (i >= r.plan().memory_size()) return "-";
      const GpuMemory& m = r.plan().memory(i);
      const int64_t fixed = m.weight_bytes() + m.activation_bytes() + m.reserve_bytes();
      return absl::StrFormat("%.1f; %.1f of %.1f GB", fixed / 1e9, m.kv_peak_bytes() / 1e9,
                             m.kv_cache_bytes() / 1e9);
    });
  }
}

std::string MetricLabel(absl::string_view metric) {
  if (metric == "tpot.mean") return "mean TPOT";
  if (metric == "ttft.mean") return "mean TTFT";
  return std::string(metric);
}

std::string FormatGbps(double gbps) {
  return gbps >= 100  ? absl::StrFormat("%.0f", gbps)
         : gbps >= 10 ? absl::StrFormat("%.1f", gbps)
                      : absl::StrFormat("%.2f", gbps);
}

void PrintIntervals(const Comparison& comparison, std::ostream& out) {
  if (comparison.intervals().empty()) return;
  out << "\nHow sure: with";
  for (const Variation& variation : comparison.variations()) {
    out << (&variation == &comparison.variations(0) ? " " : " and ") << variation.constants()
        << absl::StrFormat(" x %.2f to %.2f", variation.low_factor(), variation.high_factor());
  }
  out << "\n";
  for (const Interval& interval : comparison.intervals()) {
    out << "  " << interval.label() << ": " << MetricLabel(interval.metric()) << " "
        << FormatSeconds(interval.low()) << " to " << FormatSeconds(interval.high());
    if (interval.label() != comparison.results(0).label()) {
      out << absl::StrFormat(", a change of %+.4f to %+.4f %%", 100 * interval.change_low(),
                             100 * interval.change_high());
    }
    out << "\n";
  }
}

void PrintBreakEven(const Comparison& comparison, std::ostream& out) {
  if (comparison.break_even().empty()) return;
  out << "\nBreak-even on " << comparison.results(0).label()
      << " (against an unlimited network, everything else as it is)\n";
  for (const BreakEvenPoint& point : comparison.break_even()) {
    const std::string what =
        absl::StrFormat("%.0f %% of %s", 100 * point.loss(), MetricLabel(point.metric()));
    switch (point.bound()) {
      case BreakEvenPoint::BELOW_RANGE:
        out << "  The fabric never costs more than " << what << ", down to "
            << FormatGbps(point.network_gbps()) << " Gbps.\n";
        break;
      case BreakEvenPoint::ABOVE_RANGE:
        out << "  The fabric costs more than " << what << " even at "
            << FormatGbps(point.network_gbps()) << " Gbps.\n";
        break;
      default:
        out << "  The fabric costs more than " << what << " below "
            << FormatGbps(point.network_gbps()) << " Gbps.\n";
    }
  }
}

}  // namespace

void PrintResults(absl::Span<const Result> results, std::ostream& out) {
  const Result& first = results[0];
  out << first.inputs().model() << ", " << first.inputs().quantization() << " weights; "
      << first.inputs().workload_description() << "\n";
  Table table;
  std::vector<std::string> heading;
  for (const Result& result : results) heading.push_back(result.label());
  if (results.size() == 2) heading.push_back("change");
  table.Row("", heading);
  Columns columns(results, table);
  columns.Row("requests finished", [](const Result& r) {
    return absl::StrFormat("%d of %d", r.finished(), r.requests());
  });
  if (std::any_of(results.begin(), results.end(), [](const Result& r) { return r.failed() > 0; })) {
    columns.Row(
        "requests failed", [](const Result& r) { return static_cast<double>(r.failed()); },
        FormatCount, false);
  }
  columns.Row(
      "duration", [](const Result& r) { return r.duration_s(); }, FormatSeconds);
  columns.Row(
      "output tokens/s", [](const Result& r) { return r.output_tokens_per_s(); }, FormatRate);
  columns.Row(
      "total tokens/s", [](const Result& r) { return r.total_tokens_per_s(); }, FormatRate);
  table.Section("Latency");
  LatencyRows(columns, "TTFT", &Result::ttft);
  LatencyRows(columns, "TPOT", &Result::tpot);
  LatencyRows(columns, "ITL", &Result::itl);
  LatencyRows(columns, "end to end", &Result::e2e);
  LatencyRows(columns, "queue wait", &Result::queue_wait);
  StageRows(results, columns, table);
  HopRows(results, columns, table);
  LinkRows(results, columns, table);
  table.Section("KV cache");
  columns.Row("peak", [](const Result& r) {
    return absl::StrFormat("%d of %d blocks (%.1f %%)", r.kv_peak_blocks(), r.plan().kv_blocks(),
                           100 * r.kv_peak_fraction());
  });
  columns.Row(
      "preemptions", [](const Result& r) { return static_cast<double>(r.preemptions()); },
      FormatCount, false);
  MemoryRows(results, columns, table);
  table.Print(out);

  // A warning that every result has needs no label.
  std::vector<std::string> warnings;
  std::set<std::string> constants;
  for (const Result& result : results) {
    for (const std::string& warning : result.warnings()) {
      const bool everywhere = std::all_of(results.begin(), results.end(), [&](const Result& r) {
        return std::find(r.warnings().begin(), r.warnings().end(), warning) != r.warnings().end();
      });
      const std::string text = everywhere ? warning : absl::StrCat(result.label(), ": ", warning);
      if (std::find(warnings.begin(), warnings.end(), text) == warnings.end()) {
        warnings.push_back(text);
      }
    }
    constants.insert(result.constants().begin(), result.constants().end());
  }
  if (!warnings.empty()) out << "\nWarnings\n";
  for (const std::string& warning : warnings) out << "  " << warning << "\n";
  for (const Result& result : results) {
    for (const std::string& line : result.environment()) {
      out << "\nMeasured on " << line << "\n";
    }
  }
  if (!constants.empty()) out << "\nConstants (docs/model.md)\n";
  for (const std::string& constant : constants) out << "  " << constant << "\n";
}

void PrintConclusions(const Comparison& comparison, std::ostream& out) {
  for (const Comparison::Change& change : comparison.changes()) {
    out << "\n" << comparison.results(0).label() << " -> " << change.label() << "\n";
    for (const std::string& cause : change.causes()) out << "  " << cause << "\n";
  }
  PrintIntervals(comparison, out);
  PrintBreakEven(comparison, out);
  out << "\n";
  for (int i = 0; i < comparison.changes_size(); ++i) {
    out << "Answer: " << Answer(comparison, i) << "\n";
  }
}

}  // namespace fabricast
