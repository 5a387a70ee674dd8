// `fabricast run` with a process a stage, however those are started: the text is that of one
// process.

#include <sys/stat.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/launch/testing/launched.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kFabricast[] = "tools/fabricast/fabricast";
constexpr char kModel[] = "runtime/model/checkpoints/prose_16m";
constexpr char kSlurm[] = "runtime/launch/testing/single_machine_slurm.py";
constexpr char kText[] = " up in the middle of the room, and thence he was seen.";

std::string Read(const std::string& file) {
  std::ifstream in(file);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::string TokenFile() {
  const std::string file = testing::TempDir() + "/token";
  std::ofstream(file) << "a token for these tests";
  chmod(file.c_str(), 0600);
  return file;
}

// "$RUN" in a script continues a prompt on three stages.
Launched Script(const std::string& script,
                const std::map<std::string, std::string>& environment = {}) {
  const std::string run =
      absl::StrCat(kFabricast, " run --model ", kModel,
                   " --prompt 'Captain Ahab stood' --max-output-tokens 16 --token-file ",
                   TokenFile(), " --join-timeout 20");
  return Launch({"sh", "-c",
                 absl::StrReplaceAll(script, {{"$RUN", run},
                                              {"$FABRICAST", kFabricast},
                                              {"$MODEL", kModel},
                                              {"$TOKEN", TokenFile()},
                                              {"$TMP", testing::TempDir()}})},
                environment);
}

TEST(LaunchTest, StagesOfThisMachineAreStartedAndLeaveNothing) {
  const Launched launched = Script("$RUN --processes --out $TMP/out.json");
  EXPECT_TRUE(launched.exit.ok()) << launched.exit.ToString() << launched.output;
  EXPECT_THAT(launched.output, HasSubstr(kText));
  const nlohmann::json result = nlohmann::json::parse(Read(testing::TempDir() + "/out.json"));
  EXPECT_EQ(result["hops"][0]["route"], "TCP within a host");
  EXPECT_EQ(result["hops"][2]["route"], "gRPC within a host");
  EXPECT_THAT(result["environment"][3].get<std::string>(),
              AllOf(HasSubstr("stage 2 (local.cpu2): process on"), HasSubstr("the head's clock")));
}

TEST(LaunchTest, AWorkloadRunsOnProcessesToo) {
  const Launched launched = Script(
      "$FABRICAST run --model $MODEL --processes "
      "--workload closed:concurrency=4,requests=8,input=40,output=6");
  EXPECT_TRUE(launched.exit.ok()) << launched.exit.ToString() << launched.output;
  EXPECT_THAT(launched.output, HasSubstr("1 to 2 route"));
}

TEST(LaunchTest, OpenMpiStartsTheStages) {
  if (!IsInstalled("mpirun")) {
    GTEST_SKIP() << "mpirun is not installed: apt-get install openmpi-bin";
  }
  const std::string mpirun = "mpirun --allow-run-as-root --oversubscribe -n ";
  const Launched launched = Script(mpirun + "3 $RUN");
  EXPECT_TRUE(launched.exit.ok()) << launched.exit.ToString() << launched.output;
  EXPECT_THAT(launched.output, HasSubstr(kText));
  const Launched two = Script(mpirun + "2 $RUN");
  EXPECT_FALSE(two.exit.ok());
  EXPECT_THAT(two.output,
              HasSubstr("mpirun started 2 processes and the plan has 3 stages: start 3"));
  const Launched no_token =
      Script(mpirun + "3 $FABRICAST run --model $MODEL --prompt x --max-output-tokens 1");
  EXPECT_FALSE(no_token.exit.ok());
  EXPECT_THAT(no_token.output, HasSubstr("the same --token-file"));
}

TEST(LaunchTest, SlurmStartsTheStages) {
  for (const char* const program : {"munged", "slurmctld", "slurmd", "srun"}) {
    if (!IsInstalled(program)) {
      GTEST_SKIP() << program
                   << " is not installed: apt-get install slurmctld slurmd slurm-client munge";
    }
  }
  const Launched launched = Script(absl::StrCat(kSlurm, " srun -n 3 --overcommit $RUN"));
  EXPECT_TRUE(launched.exit.ok()) << launched.exit.ToString() << launched.output;
  EXPECT_THAT(launched.output, HasSubstr(kText));
}

TEST(LaunchTest, TorchrunsVariablesStartTheStages) {
  const Launched launched = Script(
      "export WORLD_SIZE=3 LOCAL_WORLD_SIZE=3 MASTER_ADDR=127.0.0.1 MASTER_PORT=29417\n"
      "RANK=2 LOCAL_RANK=2 $RUN & RANK=1 LOCAL_RANK=1 $RUN & RANK=0 LOCAL_RANK=0 $RUN\n"
      "status=$?; wait; exit $status");
  EXPECT_TRUE(launched.exit.ok()) << launched.exit.ToString() << launched.output;
  EXPECT_THAT(launched.output, HasSubstr(kText));
}

TEST(LaunchTest, AnIndexedJobOfKubernetesStartsTheStages) {
  const Launched launched = Script(
      "export FABRICAST_HEAD=127.0.0.1:29418\n"
      "JOB_COMPLETION_INDEX=2 $RUN & JOB_COMPLETION_INDEX=1 $RUN & JOB_COMPLETION_INDEX=0 $RUN\n"
      "status=$?; wait; exit $status");
  EXPECT_TRUE(launched.exit.ok()) << launched.exit.ToString() << launched.output;
  EXPECT_THAT(launched.output, HasSubstr(kText));
}

// Two hosts, which 127.0.0.1 and 127.0.0.2 play: the bundled cluster of that shape.
std::string TwoHosts() {
  return " --topology rehearsal_2x --set host_a.address=127.0.0.1 --set host_b.address=127.0.0.2";
}

TEST(LaunchTest, AStageOnAnotherHostJoinsByHand) {
  const std::string hosts = TwoHosts();
  const Launched launched = Script(
      "$FABRICAST stage --stage 2 --model $MODEL --token-file $TOKEN --head 127.0.0.1:29419" +
      hosts + " & $RUN --head 127.0.0.1:29419" + hosts + "; status=$?; wait; exit $status");
  EXPECT_TRUE(launched.exit.ok()) << launched.exit.ToString() << launched.output;
  EXPECT_THAT(launched.output, AllOf(HasSubstr(kText), HasSubstr("stage 2 (host_b.cpu0) joined")));
}

TEST(LaunchTest, AStageOfAnotherModelOrTopologyIsNamedAtBothEnds) {
  const std::string hosts = TwoHosts();
  const Launched launched = Script(
      "$FABRICAST stage --stage 2 --model $MODEL --token-file $TOKEN --head 127.0.0.1:29420" +
      hosts + " --set host_a.nic0.rate_gbps=0.05 & $RUN --head 127.0.0.1:29420" + hosts +
      "; status=$?; wait; exit $status");
  EXPECT_FALSE(launched.exit.ok());
  EXPECT_THAT(launched.output,
              AllOf(HasSubstr("stage 2 (host_b.cpu0)"), HasSubstr("its topology differs")));
}

TEST(LaunchTest, AHostThatIsNotThisOneIsNamed) {
  const Launched launched = Script("$FABRICAST stage --stage 2 --model $MODEL --token-file $TOKEN" +
                                   TwoHosts() + " --set host_b.address=203.0.113.9");
  EXPECT_FALSE(launched.exit.ok());
  EXPECT_THAT(launched.output, AllOf(HasSubstr("stage 2 belongs on host_b"),
                                     HasSubstr("203.0.113.9"), HasSubstr("start it there")));
}

TEST(LaunchTest, AStageThatIsKilledFailsItsRequestsAndTheRunSaysSo) {
  // The head's children are stages; the last of them is killed in the middle of the run.
  const Launched launched = Script(
      "$FABRICAST run --model $MODEL --processes --out $TMP/failed.json "
      "--workload closed:concurrency=2,requests=12,input=100,output=100 & head=$!\n"
      "for i in $(seq 200); do sleep 0.05; pid=$(pgrep -P $head -f 'stage --stage 2'); "
      "[ -n \"$pid\" ] && break; done\n"
      "sleep 0.8; kill -9 $pid; wait $head");
  EXPECT_EQ(launched.exit.ToString(), "exited with 1") << launched.output;
  EXPECT_THAT(launched.output, HasSubstr("of 12 requests failed"));
  const nlohmann::json result = nlohmann::json::parse(Read(testing::TempDir() + "/failed.json"));
  const auto count = [&](const char* name) {
    return result.contains(name) ? std::stoi(result[name].get<std::string>()) : 0;
  };
  EXPECT_GE(count("failed"), 1);
  EXPECT_EQ(count("failed") + count("finished"), 12);
  EXPECT_THAT(result["warnings"].dump(), HasSubstr("killed by signal 9 (SIGKILL)"));
}

}  // namespace
}  // namespace fabricast
