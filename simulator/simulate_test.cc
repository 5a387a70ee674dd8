#include "simulator/simulate.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/json_util.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "runtime/cost/communication_cost.h"
#include "runtime/cost/stage_cost.h"
#include "simulator/test_scenarios.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

double HopSeconds(const Scenario& scenario, int from_stage, double bytes) {
  const auto& stages = scenario.plan.stages;
  const Route& route = scenario.topology.route(
      stages[from_stage].gpus.front(), stages[(from_stage + 1) % stages.size()].gpus.front());
  return SendCost::For(scenario.topology, route)->LoneSeconds(bytes);
}

double StageSeconds(const Scenario& scenario, int stage, const BatchShape& batch) {
  return TotalSeconds(
      MakeStageCost(scenario.topology, scenario.model, scenario.plan, stage).Explain(batch));
}

TEST(SimulateTest, OneRequestAloneTakesTheSumOfItsStagesAndHops) {
  // One prompt of 100 tokens in one chunk, then 3 more tokens: nothing overlaps, so all can be
  // added up by hand.
  const Scenario scenario =
      MakeScenario("trinity_200g", "closed:concurrency=1,requests=1,input=100,output=4");
  double ttft = 0;
  for (int s = 0; s < 3; ++s) {
    ttft += StageSeconds(scenario, s, BatchShape::Prefill(100, 0, true));
  }
  ttft += HopSeconds(scenario, 0, 100 * 16384 * 2) + HopSeconds(scenario, 1, 100 * 16384 * 2) +
          HopSeconds(scenario, 2, 4);
  double decode = 0;
  for (int64_t context : {101, 102, 103}) {
    for (int s = 0; s < 3; ++s) decode += StageSeconds(scenario, s, BatchShape::Decode(1, context));
    decode += HopSeconds(scenario, 0, 16384 * 2) + HopSeconds(scenario, 1, 16384 * 2) +
              HopSeconds(scenario, 2, 4);
  }
  const Result result = MustSimulate(scenario);
  EXPECT_EQ(result.finished(), 1);
  EXPECT_EQ(result.output_tokens(), 4);
  EXPECT_NEAR(result.ttft().mean(), ttft, 1e-9 * ttft);
  EXPECT_NEAR(result.tpot().mean(), decode / 3, 1e-9 * decode);
  EXPECT_NEAR(result.e2e().mean(), ttft + decode, 1e-9 * (ttft + decode));
  EXPECT_NEAR(result.duration_s(), ttft + decode, 1e-9 * (ttft + decode));
}

TEST(SimulateTest, WithOneRequestEveryStageButOneIdlesAndEveryHopIsExposed) {
  const Scenario scenario =
      MakeScenario("trinity_200g", "closed:concurrency=1,requests=2,input=100,output=50");
  const Result result = MustSimulate(scenario);
  double busy = 0;
  double transfers = 0;
  for (const StageResult& stage : result.stages()) busy += stage.busy_s();
  for (const HopResult& hop : result.hops()) transfers += hop.transfer_s();
  // Nothing overlaps: stages and hops together fill the run.
  EXPECT_NEAR(busy + transfers, result.duration_s(), 1e-6 * result.duration_s());
  EXPECT_NEAR(result.hops(0).exposed_s(), result.hops(0).transfer_s(), 1e-9);
  EXPECT_NEAR(result.hops(1).exposed_s(), result.hops(1).transfer_s(), 1e-9);
}

TEST(SimulateTest, HopsCarryHiddenTimesTwoBytesAToken) {
  const Scenario scenario =
      MakeScenario("trinity_200g", "closed:concurrency=4,requests=8,input=300,output=20");
  const Result result = MustSimulate(scenario);
  // Each request computes 300 prompt tokens and 19 of its 20 outputs (the last is never fed back).
  const int64_t tokens = 8 * (300 + 19);
  EXPECT_EQ(result.hops(0).bytes(), tokens * 16384 * 2);
  EXPECT_EQ(result.hops(1).bytes(), tokens * 16384 * 2);
  EXPECT_EQ(result.hops(2).bytes(), 8 * 20 * 4);
  EXPECT_EQ(result.itl().count(), 8 * 19);
  EXPECT_EQ(result.tpot().count(), 8);
}

TEST(SimulateTest, HopsBetweenProcessorsCarryHiddenTimesFourBytesAToken) {
  const Scenario scenario =
      MakeScenario("local_cpu", "closed:concurrency=1,requests=2,input=64,output=3", {}, {},
                   "llama-3.2-1b-instruct");
  const Result result = MustSimulate(scenario);
  EXPECT_EQ(result.finished(), 2);
  // 64 prompt tokens and the 2 outputs that are fed back, of each request.
  EXPECT_EQ(result.hops(0).bytes(), 2 * (64 + 2) * 2048 * 4);
}

TEST(SimulateTest, AControlPlaneAddsItsTimeToEachToken) {
  Scenario scenario =
      MakeScenario("trinity_200g", "closed:concurrency=1,requests=1,input=100,output=11");
  const double at_once = MustSimulate(scenario).tpot().mean();
  scenario.control.launch_s = 2e-3;
  const double launched = MustSimulate(scenario).tpot().mean();
  EXPECT_NEAR(launched - at_once, 2e-3, 1e-9);
  scenario.control.return_s = 3e-3;
  const double returned = MustSimulate(scenario).tpot().mean();
  scenario.control.return_s = 7e-3;
  EXPECT_NEAR(MustSimulate(scenario).tpot().mean() - returned, 4e-3, 1e-9);
}

TEST(SimulateTest, OutputNeverComesFasterThanTheSlowestStageAllows) {
  const Scenario scenario =
      MakeScenario("trinity_200g", "closed:concurrency=3,requests=12,input=16,output=200");
  const Result result = MustSimulate(scenario);
  double slowest = 0;
  for (int s = 0; s < 3; ++s) {
    slowest = std::max(slowest, StageSeconds(scenario, s, BatchShape::Decode(1, 1)));
  }
  // Three requests over three stages: a token a step of the slowest stage at best.
  EXPECT_LT(result.output_tokens_per_s(), 1 / slowest);
  EXPECT_GT(result.output_tokens_per_s(), 0.8 / slowest);
}

TEST(SimulateTest, TheSameScenarioGivesTheSameBytes) {
  const Scenario scenario = MakeScenario(
      "trinity_200g",
      "gamma:rate=0.2,cv=2,requests=40,input=lognormal(300;1;4000),output=uniform(1;100)");
  std::string json[2];
  for (std::string& text : json) {
    ASSERT_TRUE(google::protobuf::util::MessageToJsonString(MustSimulate(scenario), &text).ok());
  }
  EXPECT_EQ(json[0], json[1]);
}

TEST(SimulateTest, TwiceTheNetworkRateChangesThePapersPipelineByFarLessThanOnePercent) {
  // 32 KiB a token: 1.4 us of 132 ms at 200 Gbps.
  const char* workload = "closed:concurrency=8,requests=32,input=512,output=64";
  const Result at200 = MustSimulate(MakeScenario("trinity_200g", workload));
  const Result at400 = MustSimulate(MakeScenario("trinity_400g", workload));
  EXPECT_LE(at400.tpot().mean(), at200.tpot().mean());
  EXPECT_GT(at400.tpot().mean(), 0.999 * at200.tpot().mean());
  EXPECT_GT(at400.ttft().mean(), 0.999 * at200.ttft().mean());
}

TEST(SimulateTest, ASlowNetworkBindsThePipeline) {
  Scenario scenario =
      MakeScenario("trinity_200g", "closed:concurrency=3,requests=6,input=512,output=32");
  const Result fast = MustSimulate(scenario);
  scenario.topology = scenario.topology.WithNetworkRate(0.1);
  const Result slow = MustSimulate(scenario);
  // A chunk of 512 tokens is 16.8 MB: 1.45 s at 0.0116 GB/s of payload, twice its computation.
  EXPECT_GT(slow.ttft().mean(), 1.5 * fast.ttft().mean());
  EXPECT_GT(slow.hops(1).exposed_s(), 100 * fast.hops(1).exposed_s());
  EXPECT_LE(slow.hops(1).exposed_s(), slow.hops(1).transfer_s());
}

TEST(SimulateTest, OverloadFillsTheCacheAndStillServesEveryRequest) {
  PlanOptions options;
  options.kv_blocks = 200;  // 3,200 tokens
  const Result result = MustSimulate(MakeScenario(
      "trinity_200g", "poisson:rate=50,requests=60,input=uniform(50;400),output=uniform(50;300)",
      options));
  EXPECT_EQ(result.finished(), 60);
  EXPECT_GT(result.preemptions(), 0);
  EXPECT_GT(result.recomputed_tokens(), 0);
  EXPECT_LE(result.kv_peak_blocks(), 200);
  EXPECT_GT(result.kv_peak_fraction(), 0.9);
}

TEST(SimulateTest, RequestsThatCanNeverFitAreRejectedAndSaidSo) {
  PlanOptions options;
  options.kv_blocks = 10;  // 160 tokens
  const Result result = MustSimulate(
      MakeScenario("trinity_200g", "closed:concurrency=1,requests=3,input=200,output=2", options));
  EXPECT_EQ(result.rejected(), 3);
  EXPECT_EQ(result.finished(), 0);
  ASSERT_FALSE(result.warnings().empty());
  EXPECT_THAT(result.warnings(result.warnings_size() - 1), HasSubstr("3 of 3 requests"));
}

TEST(SimulateTest, OneStageHasNoHops) {
  PlanOptions options;
  options.tensor_parallel = {4};
  const Result result = MustSimulate(
      MakeScenario("h200_x4", "closed:concurrency=2,requests=4,input=100,output=10", options));
  EXPECT_EQ(result.stages_size(), 1);
  EXPECT_EQ(result.hops_size(), 0);
  EXPECT_EQ(result.finished(), 4);
  EXPECT_GT(result.stages(0).decode().collective_s(), 0);
}

TEST(SimulateTest, StagesOfDifferentNumbersOfGpusMeetAtTheirFirst) {
  PlanOptions options;
  options.tensor_parallel = {2, 1, 1};
  const Scenario scenario =
      MakeScenario("h200_x4", "closed:concurrency=1,requests=1,input=100,output=2", options);
  const Result result = MustSimulate(scenario);
  // A lone request takes the sum of its stages and hops, and only the first stage all-reduces.
  double ttft = 0;
  for (int s = 0; s < 3; ++s) {
    ttft += StageSeconds(scenario, s, BatchShape::Prefill(100, 0, true)) +
            HopSeconds(scenario, s, s < 2 ? 100 * 16384 * 2 : 4);
  }
  EXPECT_NEAR(result.ttft().mean(), ttft, 1e-9 * ttft);
  EXPECT_GT(result.stages(0).decode().collective_s(), 0);
  EXPECT_EQ(result.stages(1).decode().collective_s(), 0);
  ASSERT_EQ(result.hops_size(), 3);
}

TEST(SimulateTest, ChunksChosenByRuleHalveTheTimeToTheFirstTokenOfALongPrompt) {
  const auto simulate = [](bool automatic) {
    PlanOptions options;
    options.stages = 3;
    options.max_batch_tokens = 8448;
    options.max_chunk_tokens = 8192;
    options.auto_chunk = automatic;
    options.load = {.requests = 1, .context = 8192, .prompt = 8192, .output = 1};
    const Scenario scenario =
        MakeScenario("h200_x4", "closed:concurrency=1,requests=1,input=8192,output=1", options);
    if (automatic) {
      // The rule's own figure leaves out the hops and takes all chunks as the middle one.
      std::vector<StageCost> stages;
      for (int s = 0; s < 3; ++s) {
        stages.push_back(MakeStageCost(scenario.topology, scenario.model, scenario.plan, s));
      }
      const ChunkChoice choice = ChooseChunk(stages, options.load, 8448);
      EXPECT_EQ(choice.tokens, scenario.plan.scheduler.max_chunk_tokens);
      EXPECT_NEAR(choice.ttft_s / MustSimulate(scenario).ttft().mean(), 1, 0.02);
    }
    return MustSimulate(scenario).ttft().mean();
  };
  EXPECT_LE(simulate(true) / simulate(false), 0.45);
}

TEST(SimulateTest, MoreMicroBatchesThanByTheRuleAreSlower) {
  for (const auto& [workload, requests] :
       {std::pair("closed:concurrency=8,requests=24,input=64,output=64", 8),
        {"closed:concurrency=96,requests=96,input=16,output=32", 96}}) {
    PlanOptions options;
    options.stages = 3;
    options.auto_in_flight = true;
    options.load = {.requests = requests, .context = 96, .prompt = 64, .output = 64};
    const Scenario chosen = MakeScenario("h200_x4", workload, options);
    EXPECT_EQ(chosen.plan.scheduler.max_in_flight, 3);
    const double rate = MustSimulate(chosen).output_tokens_per_s();
    options.auto_in_flight = false;
    for (int more : {4, 6}) {
      options.max_in_flight = more;
      EXPECT_LT(MustSimulate(MakeScenario("h200_x4", workload, options)).output_tokens_per_s(),
                rate)
          << more << ", " << workload;
    }
  }
}

TEST(SimulateTest, UntunedSendsAt400GbpsAreAWarningThatNamesTheSetting) {
  const Result result = MustSimulate(
      MakeScenario("trinity_400g", "closed:concurrency=1,requests=1,input=100,output=2"));
  bool found = false;
  for (const std::string& warning : result.warnings()) {
    found = found || warning.find("NCCL_P2P_NET_CHUNKSIZE") != std::string::npos;
  }
  EXPECT_TRUE(found);
}

TEST(SimulateTest, TheTraceHasATrackAStageAndALink) {
  Scenario scenario =
      MakeScenario("trinity_200g", "closed:concurrency=2,requests=2,input=100,output=5");
  scenario.trace_file = testing::TempDir() + "/trace.json";
  const Result result = MustSimulate(scenario);
  std::ifstream file(scenario.trace_file);
  const nlohmann::json trace = nlohmann::json::parse(file, nullptr, false);
  ASSERT_TRUE(trace.contains("traceEvents"));
  std::set<std::string> tracks;
  int64_t slices = 0;
  double busy_us = 0;
  for (const auto& event : trace["traceEvents"]) {
    if (event["ph"] == "M" && event["name"] == "thread_name") {
      tracks.insert(event["args"]["name"].get<std::string>());
    }
    if (event["ph"] != "X" || !event["args"].contains("micro_batch")) continue;
    ++slices;
    busy_us += event["dur"].get<double>();
  }
  EXPECT_TRUE(tracks.contains("stage 2: node_b.gpu0"));
  EXPECT_TRUE(tracks.contains("node_a.nic0 tx"));
  int64_t micro_batches = 0;
  double busy_s = 0;
  for (const StageResult& stage : result.stages()) {
    micro_batches += stage.micro_batches();
    busy_s += stage.busy_s();
  }
  EXPECT_EQ(slices, micro_batches);
  EXPECT_NEAR(busy_us * 1e-6, busy_s, 1e-6 * busy_s);
}

TEST(SimulateTest, ATraceThatCannotBeWrittenIsAnErrorThatNamesTheFile) {
  Scenario scenario =
      MakeScenario("trinity_200g", "closed:concurrency=1,requests=1,input=10,output=2");
  scenario.trace_file = "/no/such/folder/trace.json";
  const absl::StatusOr<Result> result = Simulate(scenario);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("/no/such/folder/trace.json"));
}

// Whatever the workload and the plan, these hold.
class SimulateInvariantsTest : public testing::TestWithParam<int> {};

TEST_P(SimulateInvariantsTest, Hold) {
  const int seed = GetParam();
  PlanOptions options;
  options.max_in_flight = 1 + seed % 5;
  options.max_chunk_tokens = 64 << (seed % 4);
  options.kv_blocks = seed % 3 == 0 ? 120 : 0;
  const std::vector<std::string> workloads = {
      "poisson:rate=1,requests=25,input=lognormal(200;1;1500),output=uniform(1;60)",
      "closed:concurrency=5,requests=25,input=uniform(1;900),output=exponential(30;200)",
      "gamma:rate=3,cv=3,requests=25,input=100,output=1"};
  const Scenario scenario = MakeScenario(seed % 2 == 0 ? "trinity_200g" : "rtx_pro_6000_x8",
                                         workloads[seed % 3], options);
  const Result result = MustSimulate(scenario);
  EXPECT_EQ(result.finished() + result.rejected(), 25);
  int64_t output = 0;
  for (const Request& request : scenario.workload.requests) output += request.output_tokens;
  EXPECT_EQ(result.output_tokens(), output);
  EXPECT_LE(result.kv_peak_blocks(), result.plan().kv_blocks());
  for (const StageResult& stage : result.stages()) {
    EXPECT_LE(stage.busy_s(), result.duration_s() * (1 + 1e-9));
    EXPECT_NEAR(stage.busy_fraction() + stage.bubble_fraction(), 1, 1e-12);
    EXPECT_GE(stage.bubble_fraction(), -1e-9);
    double by_cause =
        TotalSeconds(stage.decode()) + TotalSeconds(stage.prefill()) + TotalSeconds(stage.mixed());
    EXPECT_NEAR(by_cause, stage.busy_s(), 1e-6 * stage.busy_s());
  }
  for (const HopResult& hop : result.hops()) {
    EXPECT_LE(hop.exposed_s(), hop.transfer_s() * (1 + 1e-9));
    EXPECT_LE(hop.wire_s(), hop.transfer_s() * (1 + 1e-9));
  }
  for (const LinkResult& link : result.links()) EXPECT_LE(link.utilisation(), 1 + 1e-9);
  EXPECT_LE(result.ttft().mean(), result.e2e().mean());
  EXPECT_LE(result.queue_wait().mean(), result.ttft().mean());
  EXPECT_LE(result.ttft().p50(), result.ttft().p90());
  EXPECT_LE(result.ttft().p90(), result.ttft().p99());
  EXPECT_LE(result.ttft().p99(), result.ttft().max());
}

INSTANTIATE_TEST_SUITE_P(Seeds, SimulateInvariantsTest, testing::Range(0, 24));

}  // namespace
}  // namespace fabricast
