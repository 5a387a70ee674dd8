// fabricast compare on results that `run --out` and `simulate --out` wrote: side by side, and event
// by event.
#ifndef FABRICAST_TOOLS_FABRICAST_COMPARE_RESULTS_H_
#define FABRICAST_TOOLS_FABRICAST_COMPARE_RESULTS_H_

#include <string>
#include <vector>

#include "tools/fabricast/inputs.h"

namespace fabricast {

struct CompareResultsFlags {
  std::vector<std::string> files;  // the first is the baseline
  std::vector<std::string> fail_if;
  std::string events_file;  // all events, lined up, are written here; of two results
  std::string trace_file;   // both runs for Perfetto; of two results
  Format format = Format::kText;
};

// Returns the exit status. Results whose events cannot be lined up are compared without them, and
// the reason is said, unless a file was asked for.
int CompareResults(const CompareResultsFlags& flags);

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_COMPARE_RESULTS_H_
