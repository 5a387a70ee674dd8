#include "tools/fabricast/table.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"

namespace fabricast {
namespace {

std::string Significant(double value, const char* unit) {
  const double size = std::fabs(value);
  const int decimals = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3;
  return absl::StrFormat("%.*f %s", decimals, value, unit);
}

}  // namespace

void Table::Section(std::string title) { lines_.push_back({std::move(title), {}, true}); }

void Table::Row(std::string label, std::vector<std::string> cells) {
  lines_.push_back({std::move(label), std::move(cells), false});
}

void Table::Print(std::ostream& out) const {
  size_t label_width = 0;
  std::vector<size_t> widths;
  for (const Line& line : lines_) {
    if (!line.section) label_width = std::max(label_width, line.label.size());
    widths.resize(std::max(widths.size(), line.cells.size()));
    for (size_t i = 0; i < line.cells.size(); ++i) {
      widths[i] = std::max(widths[i], line.cells[i].size());
    }
  }
  for (const Line& line : lines_) {
    if (line.section) {
      out << "\n" << line.label << "\n";
      continue;
    }
    std::string text = absl::StrFormat("  %-*s", static_cast<int>(label_width), line.label);
    for (size_t i = 0; i < line.cells.size(); ++i) {
      absl::StrAppendFormat(&text, "  %*s", static_cast<int>(widths[i]), line.cells[i]);
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out << text << "\n";
  }
}

std::string FormatSeconds(double seconds) {
  const double size = std::fabs(seconds);
  if (size == 0) return "0 s";
  if (size < 1e-3) return Significant(seconds * 1e6, "us");
  if (size < 1) return Significant(seconds * 1e3, "ms");
  if (size < 3600) return Significant(seconds, "s");
  return Significant(seconds / 3600, "h");
}

std::string FormatBytes(double bytes) {
  if (bytes < 1e3) return absl::StrFormat("%.0f B", bytes);
  if (bytes < 1e6) return Significant(bytes / 1e3, "kB");
  if (bytes < 1e9) return Significant(bytes / 1e6, "MB");
  if (bytes < 1e12) return Significant(bytes / 1e9, "GB");
  return Significant(bytes / 1e12, "TB");
}

std::string FormatChange(double before, double after) {
  if (before == 0) return "";
  const double percent = 100 * (after - before) / before;
  return absl::StrFormat("%+.*f %%", percent != 0 && std::fabs(percent) < 0.1 ? 4 : 2, percent);
}

}  // namespace fabricast
