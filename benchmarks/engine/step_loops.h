// What a step of the engine would cost with parts of it left out: with stages that compute nothing,
// with no threads, with the decisions alone; and what two threads take to wake one another.
#ifndef FABRICAST_BENCHMARKS_ENGINE_STEP_LOOPS_H_
#define FABRICAST_BENCHMARKS_ENGINE_STEP_LOOPS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/tokenizer/tokenizer.h"

namespace fabricast {

// `running` requests that all decode, each of them once in `stages` steps: a step is a micro-batch
// of ceil(running / stages) tokens or fewer, `stages` of them in flight.
struct StepLoad {
  int stages = 1;
  int running = 1;
  int64_t steps = 1000;                        // about as many are timed
  std::shared_ptr<const Tokenizer> tokenizer;  // null: no text
  // That each stage works on a step; the times below do not include one stage's. Threads that wait
  // for as long as real stages compute are asleep; without, they may not have got to sleep yet.
  double compute_s = 0;
};

struct StepTimes {
  // Of each step: from its start on the first stage to the next one's.
  std::vector<double> wall_s;
  double cpu_s = 0;  // a step, of the whole process, computing included
};

// Each checks that all requests got all their tokens, and text if there is a tokenizer.
StepTimes TimeEngine(const StepLoad& load);
// The head and the recorder on one thread, as the engine calls them. One stage.
StepTimes TimeHead(const StepLoad& load);
// The scheduler alone. One stage.
StepTimes TimeScheduler(const StepLoad& load);

// From one thread to another that waits for it, asleep or looking all the time: half of each of
// `rounds` round trips.
std::vector<double> TimeHandOvers(int rounds, bool asleep);

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_ENGINE_STEP_LOOPS_H_
