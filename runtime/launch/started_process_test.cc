// A real process finds its place in what torchrun, Kubernetes and their like set.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/launch/testing/launched.h"

namespace fabricast {
namespace {

using ::nlohmann::json;
using ::testing::ElementsAre;

constexpr char kPrintPlace[] = "runtime/launch/print_place";

TEST(StartedProcessTest, TorchrunsVariablesSayAllOfAPlace) {
  for (int rank = 0; rank < 4; ++rank) {
    const Launched launched = Launch({kPrintPlace}, {{"RANK", std::to_string(rank)},
                                                     {"WORLD_SIZE", "4"},
                                                     {"LOCAL_RANK", std::to_string(rank % 2)},
                                                     {"LOCAL_WORLD_SIZE", "2"},
                                                     {"MASTER_ADDR", "node1"},
                                                     {"MASTER_PORT", "29500"}});
    const json place = {{"rank", rank},           {"size", 4},
                        {"local_rank", rank % 2}, {"local_size", 2},
                        {"head", "node1:29500"},  {"launcher", "torchrun"}};
    EXPECT_THAT(launched.places, ElementsAre(place)) << launched.output;
  }
}

TEST(StartedProcessTest, APodsIndexIsARankWhereTheHeadIsNamed) {
  const Launched launched =
      Launch({kPrintPlace},
             {{"JOB_COMPLETION_INDEX", "2"}, {"FABRICAST_HEAD", "pipeline-0.pipeline:29500"}});
  const json place = {
      {"rank", 2}, {"head", "pipeline-0.pipeline:29500"}, {"launcher", "Kubernetes"}};
  EXPECT_THAT(launched.places, ElementsAre(place)) << launched.output;
  EXPECT_THAT(Launch({kPrintPlace}, {{"JOB_COMPLETION_INDEX", "2"}}).places, ElementsAre(json()));
}

TEST(StartedProcessTest, AnErrorIsOneLineThatNamesTheVariable) {
  const Launched launched = Launch({kPrintPlace}, {{"RANK", "x"}, {"WORLD_SIZE", "4"}});
  EXPECT_EQ(launched.exit.ToString(), "exited with 1");
  EXPECT_EQ(launched.output,
            "RANK is \"x\", and a launcher sets a whole number of 0 to 1000000; unset it, or give "
            "--rank\n");
}

}  // namespace
}  // namespace fabricast
