#include "benchmarks/fabric_rehearsal/rehearsed_run.h"

#include <google/protobuf/util/json_util.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "benchmarks/fabric_rehearsal/trace_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

constexpr char kModel[] = "runtime/model/checkpoints/prose_16m";

std::string File(const std::string& name) { return absl::StrCat(::testing::TempDir(), "/", name); }

void Write(const std::string& file, const std::string& text) { std::ofstream(file) << text; }

// A run with stages of 1 ms a micro-batch and 0.1 ms a token: not what the roofline says.
Timeline InventedTimes() {
  Timeline timeline;
  for (int stage = 0; stage < 3; ++stage) {
    for (int64_t decodes : {0, 1, 2, 4}) {
      for (int64_t prefill : {0, 64, 128}) {
        timeline.stages.push_back({.stage = stage,
                                   .micro_batch = 0,
                                   .start_s = 0,
                                   .end_s = 1e-3 + 1e-4 * static_cast<double>(decodes + prefill),
                                   .decodes = decodes,
                                   .prefill_tokens = prefill});
      }
    }
  }
  return timeline;
}

Result InputsAt(const std::string& gbps) {
  Result run;
  run.set_label(gbps);
  run.mutable_inputs()->set_topology("rehearsal_2x");
  run.mutable_inputs()->set_quantization("bf16");
  run.mutable_inputs()->set_workload("closed:concurrency=4,requests=12,input=128,output=16");
  run.mutable_inputs()->add_overrides(absl::StrCat("*.nic0.rate_gbps=", gbps));
  PlanResult& plan = *run.mutable_plan();
  for (int layers : {4, 3, 2}) plan.add_stages()->set_num_layers(layers);
  plan.set_tensor_parallel(1);
  plan.set_max_in_flight(2);  // fewer than stages
  plan.set_max_batch_tokens(256);
  plan.set_max_chunk_tokens(64);
  plan.set_max_running(8);
  plan.set_kv_block_tokens(16);
  plan.set_kv_blocks(200);
  return run;
}

RehearsedRun MustForecast(const Result& inputs, const Timeline& times) {
  absl::StatusOr<Scenario> scenario = ScenarioOf(inputs, kModel);
  EXPECT_TRUE(scenario.ok()) << scenario.status();
  absl::StatusOr<RehearsedRun> run = Forecast(*scenario, times);
  EXPECT_TRUE(run.ok()) << run.status();
  return *std::move(run);
}

TEST(RehearsedRunTest, ControlTimesAreThoseOfStepsThatWaitedForTokens) {
  Timeline timeline;
  const auto slice = [](double start_s, double end_s) {
    StageSlice slice{};
    slice.start_s = start_s;
    slice.end_s = end_s;
    return slice;
  };
  // The second step begins 0.3 after the first's tokens, the third right after the second.
  timeline.stages = {slice(0, 1), slice(2.5, 3), slice(3, 4)};
  timeline.transfers = {{2, 0, 0, 2.0, 2.2, 4}, {2, 0, 1, 4.0, 4.4, 4}, {0, 1, 0, 1.0, 1.9, 9}};
  const ControlTimes times = MeasuredControlTimes(timeline, 3);
  EXPECT_NEAR(times.launch_s, 0.3, 1e-12);
  EXPECT_NEAR(times.return_s, (0.2 + 0.4) / 2, 1e-12);
}

TEST(RehearsedRunTest, TheScenarioIsWhatTheRunHad) {
  const absl::StatusOr<Scenario> scenario = ScenarioOf(InputsAt("0.025"), kModel);
  ASSERT_TRUE(scenario.ok()) << scenario.status();
  ASSERT_EQ(scenario->plan.stages.size(), 3u);
  EXPECT_EQ(scenario->plan.stages[0].num_layers, 4);
  EXPECT_EQ(scenario->plan.stages[2].num_layers, 2);
  EXPECT_EQ(scenario->plan.boundary_bytes_per_token, 384 * 4);
  const SchedulerOptions& scheduler = scenario->plan.scheduler;
  EXPECT_EQ(scheduler.max_in_flight, 2);
  EXPECT_EQ(scheduler.max_batch_tokens, 256);
  EXPECT_EQ(scheduler.max_chunk_tokens, 64);
  EXPECT_EQ(scheduler.max_running, 8);
  EXPECT_EQ(scheduler.kv_block_tokens, 16);
  EXPECT_EQ(scheduler.kv_blocks, 200);
  EXPECT_EQ(scenario->workload.concurrency, 4);
  EXPECT_EQ(scenario->workload.requests.size(), 12u);
  // 25 Mbit/s of Ethernet: 1448 of 1538 bytes are payload.
  EXPECT_NEAR(scenario->topology.route(1, 2).payload_bytes_per_s, 25e6 / 8 * 1448 / 1538, 1);
}

// A chunk of 64 tokens is 98,304 bytes: 33.4 ms at 25 Mbit/s, and 0.045 ms beside them.
TEST(RehearsedRunTest, HopsTakeTheirBytesAtTheRateOfTheCable) {
  const RehearsedRun run = MustForecast(InputsAt("0.025"), InventedTimes());
  const double seconds = 98304 / (25e6 / 8 * 1448 / 1538) + 45e-6;
  EXPECT_NEAR(HopBytesPerSecond(run.timeline, 1, 2, 98304).value(), 98304 / seconds,
              1e-3 * 98304 / seconds);
  // Within a host, 2.45 GB/s after 40 us; simulated time is exact to a microsecond.
  const double within_s = 98304 / HopBytesPerSecond(run.timeline, 0, 1, 98304).value();
  EXPECT_NEAR(within_s, 40e-6 + 98304 / 2.45e9, 1.1e-6);
}

// As a run and its forecast pass each other: written, read back, its times fitted.
TEST(RehearsedRunTest, ARunWithTheseTimesIsForecastAsItWas) {
  const Result inputs = InputsAt("0.1");
  absl::StatusOr<Scenario> scenario = ScenarioOf(inputs, kModel);
  ASSERT_TRUE(scenario.ok()) << scenario.status();
  scenario->measured = std::make_shared<const MeasuredStageTimes>(
      MeasuredStageTimes::Fit(3, InventedTimes().stages).value());
  scenario->trace_file = File("run.trace.json");
  absl::StatusOr<Result> result = Simulate(*scenario);
  ASSERT_TRUE(result.ok()) << result.status();
  *result->mutable_inputs()->mutable_overrides() = inputs.inputs().overrides();
  result->mutable_inputs()->set_seed(1);
  std::string json;
  ASSERT_TRUE(google::protobuf::util::MessageToJsonString(*result, &json).ok());
  Write(File("run.json"), json);

  const absl::StatusOr<RehearsedRun> run = ReadRun(File("run.json"), File("run.trace.json"));
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(static_cast<int64_t>(run->timeline.stages.size()),
            3 * run->result.stages(0).micro_batches());
  // A message crosses two cables and counts once.
  int64_t messages = 0;
  for (const HopResult& hop : run->result.hops()) messages += hop.messages();
  EXPECT_EQ(static_cast<int64_t>(run->timeline.transfers.size()), messages);

  // But for the way of the tokens back, which is now the mean of all.
  const RehearsedRun again = MustForecast(run->result, run->timeline);
  EXPECT_NEAR(again.result.tpot().mean(), result->tpot().mean(), 1e-3 * result->tpot().mean());
  EXPECT_NEAR(again.result.ttft().mean(), result->ttft().mean(), 1e-3 * result->ttft().mean());

  // And what it would be on another fabric, as if it had been run there.
  const RehearsedRun faster = MustForecast(InputsAt("0.4"), run->timeline);
  const RehearsedRun truly = MustForecast(InputsAt("0.4"), InventedTimes());
  EXPECT_LT(faster.result.ttft().mean(), 0.9 * result->ttft().mean());
  EXPECT_NEAR(faster.result.ttft().mean(), truly.result.ttft().mean(),
              0.01 * truly.result.ttft().mean());
}

TransferSlice Transfer(double start_s, double end_s, int64_t bytes) {
  return {.from_stage = 0,
          .to_stage = 1,
          .micro_batch = 0,
          .start_s = start_s,
          .end_s = end_s,
          .bytes = bytes};
}

TEST(RehearsedRunTest, AMessageThatWaitsForTheOneBeforeItIsNotSlow) {
  Timeline timeline;
  // 100 bytes in 1 s, 100 in the 2 s after them, 100 in 5 s, 300 in 1 s; and a small one.
  timeline.transfers = {Transfer(10, 11, 300), Transfer(0, 1, 100), Transfer(0.5, 3, 100),
                        Transfer(4, 9, 100), Transfer(12, 13, 1)};
  EXPECT_DOUBLE_EQ(HopBytesPerSecond(timeline, 0, 1, 100).value(), 75);  // of 20, 50, 100, 300
  EXPECT_DOUBLE_EQ(HopBytesPerSecond(timeline, 0, 1, 200).value(), 300);
  EXPECT_EQ(HopBytesPerSecond(timeline, 0, 1, 400).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(HopBytesPerSecond(timeline, 1, 0, 1).status().code(), absl::StatusCode::kNotFound);
}

TEST(TraceFileTest, WhatIsNoTraceIsNamed) {
  EXPECT_EQ(ReadTrace(File("none.json")).status().code(), absl::StatusCode::kNotFound);
  const auto message = [](const std::string& text) {
    Write(File("broken.json"), text);
    return std::string(ReadTrace(File("broken.json")).status().message());
  };
  EXPECT_THAT(message("{"), HasSubstr("broken.json: no trace"));
  EXPECT_THAT(message("{\"traceEvents\": 3}"), HasSubstr("broken.json: no trace"));
  EXPECT_THAT(message("{\"traceEvents\": [{\"ph\": \"M\"}, {\"ph\": \"X\"}]}"),
              HasSubstr("traceEvents[1]: "));
  EXPECT_THAT(message("{\"traceEvents\": [{\"ph\": \"X\", \"name\": \"x\", \"args\": {}}]}"),
              HasSubstr("traceEvents[0]: a slice of no known kind"));
}

TEST(RehearsedRunTest, WhatIsNoResultIsNamed) {
  Write(File("trace.json"), "{\"traceEvents\": []}");
  EXPECT_EQ(ReadRun(File("none.json"), File("trace.json")).status().code(),
            absl::StatusCode::kNotFound);
  for (const char* text : {"", "{}", "{\"plan\": 3}"}) {
    Write(File("result.json"), text);
    EXPECT_THAT(std::string(ReadRun(File("result.json"), File("trace.json")).status().message()),
                HasSubstr("result.json: no result of a run"));
  }
}

}  // namespace
}  // namespace fabricast
