#ifndef FABRICAST_TOOLS_FABRICAST_INTERRUPT_H_
#define FABRICAST_TOOLS_FABRICAST_INTERRUPT_H_

#include <atomic>

namespace fabricast {

inline constexpr int kExitInterrupted = 130;  // as a shell reports SIGINT

// True once the program was asked to end, by Ctrl-C or SIGTERM. The first call installs the
// handlers; a second signal ends the program at once.
const std::atomic<bool>& Interrupted();

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_INTERRUPT_H_
