#include "tools/fabricast/interrupt.h"

#include <unistd.h>

#include <csignal>

namespace fabricast {
namespace {

std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free);

void Handle(int) {
  if (interrupted.exchange(true)) _exit(kExitInterrupted);
}

}  // namespace

const std::atomic<bool>& Interrupted() {
  static const bool installed = [] {
    struct sigaction action = {};
    action.sa_handler = Handle;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGINT, &action, nullptr) == 0 && sigaction(SIGTERM, &action, nullptr) == 0;
  }();
  (void)installed;
  return interrupted;
}

}  // namespace fabricast
