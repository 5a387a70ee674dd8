#include "benchmarks/validation/replay.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace fabricast {
namespace {

ReplayOptions OneSecondSteps() {
  return {.scheduler = {.max_batch_tokens = 100,
                        .max_chunk_tokens = 100,
                        .max_running = 8,
                        .kv_blocks = 1000},
          .step_s = [](const MicroBatch&) { return 1.0; }};
}

Workload Requests(std::vector<Request> requests) {
  Workload workload;
  workload.requests = std::move(requests);
  return workload;
}

TEST(ReplayTest, RunsOneStepAfterTheOther) {
  // Prefill 0-1 s, decodes until 3 s. The second arrives in the step that ends at 1 s, is taken in
  // by the next and has its first token at 2 s, its second at 3 s.
  const Result result =
      Replay(Requests({{.arrival_s = 0, .prompt_tokens = 10, .output_tokens = 3},
                       {.arrival_s = 0.5, .prompt_tokens = 10, .output_tokens = 2}}),
             OneSecondSteps());
  EXPECT_EQ(result.finished(), 2);
  EXPECT_DOUBLE_EQ(result.duration_s(), 3);
  EXPECT_DOUBLE_EQ(result.ttft().mean(), (1 + 1.5) / 2);
}

TEST(ReplayTest, SchedulingAheadCostsLateArrivalsAStep) {
  ReplayOptions options = OneSecondSteps();
  options.schedule_ahead = true;
  const Result result =
      Replay(Requests({{.arrival_s = 0, .prompt_tokens = 10, .output_tokens = 3},
                       {.arrival_s = 0.5, .prompt_tokens = 10, .output_tokens = 2}}),
             options);
  // The step from 1 to 2 s was put together at 0 s.
  EXPECT_DOUBLE_EQ(result.ttft().mean(), (1 + 2.5) / 2);
  EXPECT_DOUBLE_EQ(result.duration_s(), 4);
}

TEST(ReplayTest, IdlesUntilTheNextArrival) {
  const Result result =
      Replay(Requests({{.arrival_s = 0, .prompt_tokens = 10, .output_tokens = 1},
                       {.arrival_s = 5, .prompt_tokens = 10, .output_tokens = 1}}),
             OneSecondSteps());
  EXPECT_DOUBLE_EQ(result.duration_s(), 6);
  EXPECT_DOUBLE_EQ(result.ttft().max(), 1);
}

}  // namespace
}  // namespace fabricast
