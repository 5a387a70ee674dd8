// A real mpirun tells its processes their places.
#include <stdlib.h>

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/launch/testing/launched.h"

namespace fabricast {
namespace {

using ::nlohmann::json;
using ::testing::ElementsAre;

constexpr char kPrintPlace[] = "runtime/launch/print_place";

std::vector<std::string> MpiRun(int processes) {
  return {"mpirun", "--allow-run-as-root", "--oversubscribe", "-n", std::to_string(processes)};
}

std::vector<std::string> operator+(std::vector<std::string> command,
                                   const std::vector<std::string>& more) {
  command.insert(command.end(), more.begin(), more.end());
  return command;
}

class OpenMpiTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!IsInstalled("mpirun")) {
      GTEST_SKIP() << "mpirun is not installed: apt-get install openmpi-bin";
    }
    // The paths of its sockets would be too long in a test's own folder.
    char folder[] = "/tmp/mpirun.XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    environment_["TMPDIR"] = folder;
  }
  void TearDown() override {
    if (!environment_.empty()) std::filesystem::remove_all(environment_["TMPDIR"]);
  }

  std::map<std::string, std::string> environment_;
};

json PlaceOf(int rank, int size) {
  return {{"rank", rank},       {"size", size},        {"local_rank", rank},
          {"local_size", size}, {"head", "127.0.0.1"}, {"launcher", "mpirun"}};
}

TEST_F(OpenMpiTest, EachProcessHasARankAndFindsTheHeadOnItsOwnHost) {
  const Launched launched = Launch(MpiRun(3) + std::vector<std::string>{kPrintPlace}, environment_);
  EXPECT_TRUE(launched.exit.ok()) << launched.exit.ToString() << ": " << launched.output;
  EXPECT_THAT(launched.places, ElementsAre(PlaceOf(0, 3), PlaceOf(1, 3), PlaceOf(2, 3)))
      << launched.output;
}

TEST_F(OpenMpiTest, OneProcessIsNoLauncher) {
  const Launched launched = Launch(MpiRun(1) + std::vector<std::string>{kPrintPlace}, environment_);
  EXPECT_THAT(launched.places, ElementsAre(json())) << launched.output;
}

TEST_F(OpenMpiTest, TheHeadIsWhereAVariableSays) {
  environment_["FABRICAST_HEAD"] = "10.0.0.2:29500";
  const Launched launched = Launch(
      MpiRun(2) + std::vector<std::string>{"-x", "FABRICAST_HEAD", kPrintPlace}, environment_);
  ASSERT_EQ(launched.places.size(), 2u) << launched.output;
  EXPECT_EQ(launched.places[0]["head"], "10.0.0.2:29500");
  EXPECT_EQ(launched.places[1]["head"], "10.0.0.2:29500");
}

TEST_F(OpenMpiTest, ItsRankBesideAnotherTorchrunsIsAnError) {
  environment_["RANK"] = "5";
  environment_["WORLD_SIZE"] = "8";
  const Launched launched =
      Launch(MpiRun(2) + std::vector<std::string>{"-x", "RANK", "-x", "WORLD_SIZE", kPrintPlace},
             environment_);
  EXPECT_FALSE(launched.exit.ok());
  // Of either rank: mpirun may kill the second when the first has failed.
  EXPECT_THAT(launched.output,
              testing::HasSubstr(" of 2 (OMPI_COMM_WORLD_SIZE), and RANK is 5 of 8 (WORLD_SIZE)"));
}

}  // namespace
}  // namespace fabricast
