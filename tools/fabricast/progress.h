// A line on the terminal for work that takes longer than two seconds.
#ifndef FABRICAST_TOOLS_FABRICAST_PROGRESS_H_
#define FABRICAST_TOOLS_FABRICAST_PROGRESS_H_

#include <chrono>
#include <string>

#include "simulator/isolated.h"

namespace fabricast {

// Shows "what  42 %  13 s" on standard error, only if that is a terminal and only after two
// seconds. The line is erased when the object goes.
class ProgressLine {
 public:
  explicit ProgressLine(std::string what);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // For SimulateAll and its kind. The object must outlive the callback's use.
  ProgressCallback callback();

 private:
  void Show(double done);

  const std::string what_;
  const bool terminal_;
  const std::chrono::steady_clock::time_point start_;
  bool shown_ = false;
};

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_PROGRESS_H_
