// A real Slurm, all of it on this machine, tells its tasks their places.
#include <signal.h>

#include <filesystem>
#include <future>

#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/launch/testing/launched.h"

namespace fabricast {
namespace {

using ::nlohmann::json;
using ::testing::ElementsAre;

constexpr char kSlurm[] = "runtime/launch/testing/single_machine_slurm.py";
constexpr char kPrintPlace[] = "runtime/launch/print_place";

// `script` runs in a shell, beside a Slurm with two nodes; $PRINT prints a place.
Launched LaunchInSlurm(const std::string& script) {
  return Launch({kSlurm, "--nodes", "2", "sh", "-c", script}, {{"PRINT", kPrintPlace}});
}

class SlurmTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* const program : {"munged", "slurmctld", "slurmd", "srun"}) {
      if (!IsInstalled(program)) {
        GTEST_SKIP() << program
                     << " is not installed: apt-get install slurmctld slurmd slurm-client munge";
      }
    }
  }
};

json PlaceOf(int rank, int size, int local_rank, int local_size) {
  return {{"rank", rank},
          {"size", size},
          {"local_rank", local_rank},
          {"local_size", local_size},
          {"head", "node01"},
          {"launcher", "srun"}};
}

TEST_F(SlurmTest, EachTaskHasARankAndFindsTheHeadOnTheStepsFirstNode) {
  const Launched launched = LaunchInSlurm("srun -N 2 -n 3 $PRINT");
  EXPECT_TRUE(launched.exit.ok()) << launched.exit.ToString() << ": " << launched.output;
  EXPECT_THAT(launched.places,
              ElementsAre(PlaceOf(0, 3, 0, 2), PlaceOf(1, 3, 1, 2), PlaceOf(2, 3, 0, 1)))
      << launched.output;
}

TEST_F(SlurmTest, TheHeadIsOnTheStepsNodesAndNotOnAllOfTheJobs) {
  const Launched launched =
      LaunchInSlurm("salloc -N 2 --ntasks-per-node 2 srun -N 1 -n 2 -w node02 $PRINT");
  ASSERT_EQ(launched.places.size(), 2u) << launched.output;
  EXPECT_EQ(launched.places[0]["head"], "node02");
}

TEST_F(SlurmTest, TasksWithPmiToo) {
  const Launched launched = LaunchInSlurm("srun --mpi=pmi2 -N 2 -n 3 $PRINT");
  EXPECT_THAT(launched.places,
              ElementsAre(PlaceOf(0, 3, 0, 2), PlaceOf(1, 3, 1, 2), PlaceOf(2, 3, 0, 1)))
      << launched.output;
}

TEST_F(SlurmTest, OneTaskAnAllocationOrABatchScriptIsNoLauncher) {
  const Launched launched = LaunchInSlurm(
      "srun -n 1 $PRINT && salloc -n 3 $PRINT && "
      "sbatch --wait -n 3 --output=$TEST_TMPDIR/batch.out --wrap $PRINT && "
      "cat $TEST_TMPDIR/batch.out");
  EXPECT_TRUE(launched.exit.ok()) << launched.exit.ToString() << ": " << launched.output;
  EXPECT_THAT(launched.places, ElementsAre(json(), json(), json())) << launched.output;
}

TEST_F(SlurmTest, MpirunInAnAllocationIsTheOneThatCounts) {
  if (!IsInstalled("mpirun")) {
    GTEST_SKIP() << "mpirun is not installed: apt-get install openmpi-bin";
  }
  const Launched launched =
      LaunchInSlurm("salloc -N 1 -n 3 mpirun --allow-run-as-root -n 3 $PRINT");
  ASSERT_EQ(launched.places.size(), 3u) << launched.output;
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(launched.places[rank]["rank"], rank);
    EXPECT_EQ(launched.places[rank]["size"], 3);
    EXPECT_EQ(launched.places[rank]["launcher"], "mpirun");
  }
}

TEST_F(SlurmTest, NothingStaysWhenItIsKilled) {
  std::promise<std::string> told;
  ChildOptions options;
  options.program = kSlurm;
  options.arguments = {"srun", "sh", "-c", "echo $SLURM_CONF $$; exec sleep 1000"};
  options.on_line = [&told, first = true](absl::string_view line) mutable {
    if (first) told.set_value(std::string(line));
    first = false;  // srun has more to say when it is ended
  };
  ChildProcesses children;
  const absl::StatusOr<pid_t> pid = children.Start(std::move(options));
  ASSERT_TRUE(pid.ok()) << pid.status();
  const std::vector<std::string> words = absl::StrSplit(told.get_future().get(), ' ');
  ASSERT_EQ(words.size(), 2u);
  const std::filesystem::path folder = std::filesystem::path(words[0]).parent_path();
  const pid_t task = std::stoi(words[1]);
  EXPECT_TRUE(std::filesystem::exists(folder));
  EXPECT_EQ(kill(task, 0), 0);
  children.Terminate(*pid, absl::ZeroDuration());
  // Its folder goes last. A test that waits for ever fails by its time limit.
  while (std::filesystem::exists(folder)) absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(kill(task, 0), -1);
}

TEST_F(SlurmTest, TheLaunchersStatusIsTheCommands) {
  EXPECT_EQ(LaunchInSlurm("exit 7").exit.ToString(), "exited with 7");
}

}  // namespace
}  // namespace fabricast
