#include "tools/fabricast/progress.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

namespace fabricast {

ProgressLine::ProgressLine(std::string what)
    : what_(std::move(what)),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {}

ProgressLine::~ProgressLine() {
  if (shown_) fputs("\r\033[K", stderr);
}

ProgressCallback ProgressLine::callback() {
  if (!terminal_) return nullptr;
  return [this](double done) { Show(done); };
}

void ProgressLine::Show(double done) {
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
  if (elapsed.count() < 2) return;
  shown_ = true;
  fprintf(stderr, "\r\033[K%s  %.0f %%  %.0f s", what_.c_str(), 100 * done, elapsed.count());
  fflush(stderr);
}

}  // namespace fabricast
