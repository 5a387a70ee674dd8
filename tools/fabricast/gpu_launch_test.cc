// `fabricast run` with a stage on each of two GPUs: the tokens are those of one GPU, and stages
// that die or freeze end the requests that they had, not the run's processes. Needs two GPUs.

#include <cuda_runtime_api.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/launch/testing/launched.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr char kFabricast[] = "tools/fabricast/fabricast";
constexpr char kModel[] = "runtime/model/checkpoints/prose_16m";

Launched Script(const std::string& script) {
  return Launch(
      {"bash", "-c",
       absl::StrReplaceAll(script, {{"$RUN", absl::StrCat(kFabricast, " run --model ", kModel,
                                                          " --topology local_gpu")},
                                    {"$TMP", testing::TempDir()}})},
      {{"NCCL_NVLS_ENABLE", "0"}});
}

nlohmann::json ReadJson(const std::string& name) {
  std::ifstream in(testing::TempDir() + "/" + name);
  std::ostringstream text;
  text << in.rdbuf();
  return nlohmann::json::parse(text.str());
}

int Count(const nlohmann::json& result, const char* name) {
  return result.contains(name) ? std::stoi(result[name].get<std::string>()) : 0;
}

class GpuLaunchTest : public testing::Test {
 protected:
  void SetUp() override {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 2) {
      GTEST_SKIP() << "needs two GPUs, and this machine has " << gpus;
    }
  }
};

std::vector<int> TokensOf(const std::string& flags) {
  const Launched launched =
      Script("$RUN --prompt 'Captain Ahab stood' --max-output-tokens 64 --format=json " + flags +
             " > $TMP/tokens.json");
  EXPECT_TRUE(launched.exit.ok()) << flags << ": " << launched.exit.ToString() << launched.output;
  std::vector<int> tokens;
  const nlohmann::json result = ReadJson("tokens.json");
  for (const nlohmann::json& token : result["tokens"]) {
    tokens.push_back(token["id"].get<int>());
  }
  return tokens;
}

TEST_F(GpuLaunchTest, TokensDoNotDependOnHowStagesAreJoined) {
  const std::vector<int> one = TokensOf("--stages 1");
  ASSERT_EQ(one.size(), 64);
  EXPECT_EQ(TokensOf("--stages 2"), one);
  EXPECT_EQ(TokensOf("--stages 2 --split 3,6 --max-in-flight 4"), one);
  EXPECT_EQ(TokensOf("--stages 2 --transport tcp"), one);
  EXPECT_EQ(TokensOf("--stages 2 --one-process"), one);
}

TEST_F(GpuLaunchTest, AResultSaysHowActivationsWent) {
  const Launched launched = Script(
      "$RUN --stages 2 --workload closed:concurrency=8,requests=16,input=300,output=32 "
      "--out $TMP/hops.json");
  EXPECT_TRUE(launched.exit.ok()) << launched.exit.ToString() << launched.output;
  const nlohmann::json result = ReadJson("hops.json");
  EXPECT_EQ(Count(result, "finished"), 16);
  EXPECT_EQ(result["hops"][0]["route"], "NCCL within a host");
  EXPECT_THAT(launched.output, HasSubstr("NCCL_"));
}

// Runs a workload on two stages, does something to the process of the second, and expects that the
// requests that it had, and no others, fail. The result's warnings.
std::string Disturb(const std::string& what) {
  const Launched launched = Script(absl::StrCat(
      "$RUN --stages 2 --out $TMP/disturbed.json --join-timeout 20 "
      "--workload closed:concurrency=4,requests=900,input=100,output=100 & head=$!\n"
      "for i in $(seq 400); do sleep 0.05; pid=$(pgrep -P $head -f 'stage --stage 1'); "
      "[ -n \"$pid\" ] && break; done\n"
      // It computes for some 20 s, a few seconds after it was started.
      "sleep 6; ",
      what, "; wait $head"));
  EXPECT_EQ(launched.exit.ToString(), "exited with 1") << launched.output;
  const nlohmann::json result = ReadJson("disturbed.json");
  EXPECT_GE(Count(result, "failed"), 1) << launched.output;
  EXPECT_LE(Count(result, "failed"), 4);
  EXPECT_EQ(Count(result, "failed") + Count(result, "finished"), 900);
  return result["warnings"].dump();
}

TEST_F(GpuLaunchTest, AKilledStageFailsWhatItHadAndIsStartedAgain) {
  EXPECT_THAT(Disturb("kill -9 $pid"), AllOf(HasSubstr("stage 1"), HasSubstr("SIGKILL")));
}

TEST_F(GpuLaunchTest, AFrozenStageFailsWhatItHadAndMayComeBack) {
  EXPECT_THAT(Disturb("kill -STOP $pid; sleep 8; kill -CONT $pid"),
              AnyOf(HasSubstr("stage 1"), HasSubstr("stage 0")));
}

}  // namespace
}  // namespace fabricast
