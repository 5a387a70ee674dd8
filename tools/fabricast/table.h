// Plain text tables: a label, then right-aligned cells.
#ifndef FABRICAST_TOOLS_FABRICAST_TABLE_H_
#define FABRICAST_TOOLS_FABRICAST_TABLE_H_

#include <ostream>
#include <string>
#include <vector>

namespace fabricast {

class Table {
 public:
  // A line of its own above the rows that follow, after an empty line.
  void Section(std::string title);
  void Row(std::string label, std::vector<std::string> cells);
  // Columns are as wide as their widest cell.
  void Print(std::ostream& out) const;

 private:
  struct Line {
    std::string label;
    std::vector<std::string> cells;
    bool section = false;
  };
  std::vector<Line> lines_;
};

// Three to four significant digits with a fitting unit: "1.234 s", "45.61 ms", "12.0 us", "3.1 h".
std::string FormatSeconds(double seconds);
// "1.66 GB", "32.8 kB".
std::string FormatBytes(double bytes);
// "+1.25 %"; empty for a change from zero, which has none.
std::string FormatChange(double before, double after);

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_TABLE_H_
