#include "runtime/scheduler/stage_queue.h"

#include <optional>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

TEST(StageQueueTest, AnIdleStageRunsWhatArrivesAtOnce) {
  StageQueue stage;
  EXPECT_FALSE(stage.busy());
  EXPECT_EQ(stage.Arrived(0), 0);
  EXPECT_TRUE(stage.busy());
  EXPECT_EQ(stage.Computed(0), std::nullopt);
  EXPECT_FALSE(stage.busy());
  EXPECT_EQ(stage.Arrived(1), 1);
}

TEST(StageQueueTest, ABusyStageRunsOneAtATimeInLaunchOrder) {
  StageQueue stage;
  EXPECT_EQ(stage.Arrived(0), 0);
  EXPECT_EQ(stage.Arrived(1), std::nullopt);
  EXPECT_EQ(stage.Arrived(2), std::nullopt);
  EXPECT_EQ(stage.queued(), 2);
  EXPECT_EQ(stage.Computed(0), 1);
  EXPECT_EQ(stage.queued(), 1);
  EXPECT_EQ(stage.Arrived(3), std::nullopt);
  EXPECT_EQ(stage.Computed(1), 2);
  EXPECT_EQ(stage.Computed(2), 3);
  EXPECT_EQ(stage.Computed(3), std::nullopt);
  EXPECT_EQ(stage.queued(), 0);
  EXPECT_FALSE(stage.busy());
}

TEST(StageQueueDeathTest, MicroBatchesArriveInLaunchOrderNoneMissing) {
  StageQueue stage;
  EXPECT_DEATH(stage.Arrived(1), "micro-batch 1 arrives at a stage after -1");
  stage.Arrived(0);
  EXPECT_DEATH(stage.Arrived(0), "micro-batch 0 arrives at a stage after 0");
}

TEST(StageQueueDeathTest, OnlyWhatRunsCanBeComputed) {
  StageQueue stage;
  EXPECT_DEATH(stage.Computed(0), "micro-batch 0 is computed by a stage that runs -1");
  stage.Arrived(0);
  stage.Arrived(1);
  EXPECT_DEATH(stage.Computed(1), "micro-batch 1 is computed by a stage that runs 0");
}

}  // namespace
}  // namespace fabricast
