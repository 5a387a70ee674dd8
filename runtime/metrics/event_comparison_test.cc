#include "runtime/metrics/event_comparison.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/metrics/testing.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr double kTiny = 1e-12;

Result ResultOf(const std::string& label, HandMadeRun run, int stages = 2) {
  Result result;
  result.set_label(label);
  result.mutable_inputs()->set_model("m");
  result.mutable_inputs()->set_workload_description("one request");
  for (int s = 0; s < stages; ++s) result.add_stages();
  result.set_event_log(run.Log());
  return result;
}

// A prompt and two tokens. Stage 0 decodes in 5 ms, stage 1 in `stage_1_ms` and, for the second
// token, 1 ms more; the hop between them takes `hop_ms`, to the head 1 ms, and the head launches
// 1 ms after it knows a token.
HandMadeRun OneRequest(double stage_1_ms, double hop_ms) {
  HandMadeRun run(2);
  run.Arrive(0, 10, 0);
  double at = 0;
  const auto step = [&](BatchEntry entry, double stage_0, double stage_1) {
    const double launched = at + 1;
    const double sent = launched + stage_0;
    const double there = sent + hop_ms;
    const double computed = there + stage_1;
    at = computed + 1;
    run.Run({entry}, launched, {{launched, sent, sent, there}, {there, computed, computed, at}});
  };
  step(Prefill(0, 0, 10, true), 10, 10);
  step(Decode(0, 10), 5, stage_1_ms);
  step(Decode(0, 11), 5, stage_1_ms + 1);
  run.End(0);
  return run;
}

EventComparison MustCompare(const Result& first, const Result& second) {
  const absl::StatusOr<LinedUpRuns> runs = LineUp(first, second);
  EXPECT_TRUE(runs.ok()) << runs.status();
  return CompareEvents(*runs);
}

DurationComparison Find(const EventComparison& comparison, const std::string& what, int stage,
                        const std::string& phase = "") {
  for (const DurationComparison& duration : comparison.durations()) {
    if (duration.what() == what && duration.stage() == stage && duration.phase() == phase) {
      return duration;
    }
  }
  ADD_FAILURE() << "no " << what << " of stage " << stage << " " << phase;
  return {};
}

TEST(CompareEventsTest, EachKindOfEventHasItsTimesInBothAndTheirDifference) {
  const EventComparison comparison =
      MustCompare(ResultOf("a", OneRequest(6, 2)), ResultOf("b", OneRequest(8, 2.5)));
  EXPECT_EQ(comparison.label(), "b");
  EXPECT_EQ(comparison.same_micro_batches(), 3);
  EXPECT_EQ(comparison.divergence(), "");
  EXPECT_EQ(comparison.pairs(), 3);
  EXPECT_EQ(comparison.alike_pairs(), 3);
  const DurationComparison decode = Find(comparison, "compute", 1, "decode");
  EXPECT_EQ(decode.first().count(), 2);
  EXPECT_NEAR(decode.first().p50(), 0.0065, kTiny);  // of 6 and 7
  EXPECT_NEAR(decode.second().p50(), 0.0085, kTiny);
  EXPECT_EQ(decode.lined_up(), 2);
  EXPECT_NEAR(decode.difference_mean_s(), 0.002, kTiny);
  EXPECT_NEAR(decode.difference_p50_s(), 0.002, kTiny);
  EXPECT_NEAR(decode.difference_p90_s(), 0.002, kTiny);
  EXPECT_NEAR(decode.worst_s(), 0.002, kTiny);
  const DurationComparison hop = Find(comparison, "hop", 0);
  EXPECT_EQ(hop.lined_up(), 3);
  EXPECT_NEAR(hop.difference_p50_s(), 0.0005, kTiny);
  EXPECT_NEAR(Find(comparison, "hop", 1).difference_p90_s(), 0, kTiny);
  // The last stage has a token; 1 ms to the head, 1 ms there.
  const DurationComparison turnaround = Find(comparison, "turnaround", -1);
  EXPECT_EQ(turnaround.lined_up(), 2);
  EXPECT_NEAR(turnaround.first().mean(), 0.002, kTiny);
  // Steps of 23, 14, 15 and 23.5, 16.5, 17.5 ms.
  const DurationComparison step = Find(comparison, "step", -1);
  EXPECT_NEAR(step.first().p50(), 0.015, kTiny);
  EXPECT_NEAR(step.second().p50(), 0.0175, kTiny);
}

TEST(CompareEventsTest, TheWorstDifferenceSaysWhere) {
  HandMadeRun first = std::move(HandMadeRun(1)
                                    .Arrive(0, 10, 0)
                                    .Run({Prefill(0, 0, 10, true)}, 0, {{0, 10, 10, 10}})
                                    .Run({Decode(0, 10)}, 10, {{10, 20, 20, 20}})
                                    .Run({Decode(0, 11)}, 20, {{20, 30, 30, 30}})
                                    .End(0));
  // Decodes take 1 ms more and 4 ms less.
  HandMadeRun second = std::move(HandMadeRun(1)
                                     .Arrive(0, 10, 0)
                                     .Run({Prefill(0, 0, 10, true)}, 0, {{0, 10, 10, 10}})
                                     .Run({Decode(0, 10)}, 10, {{10, 21, 21, 21}})
                                     .Run({Decode(0, 11)}, 21, {{21, 27, 27, 27}})
                                     .End(0));
  const EventComparison comparison =
      MustCompare(ResultOf("a", std::move(first), 1), ResultOf("b", std::move(second), 1));
  const DurationComparison decode = Find(comparison, "compute", 0, "decode");
  EXPECT_NEAR(decode.worst_s(), -0.004, kTiny);
  EXPECT_EQ(decode.worst_at(), "micro-batch 2");
  EXPECT_NEAR(decode.difference_p50_s(), -0.0015, kTiny);
  EXPECT_NEAR(decode.difference_p90_s(), 0.0037, kTiny);  // of 1 and 4, nine tenths of the way
}

TEST(CompareEventsTest, PartsSumToTheLatenciesAndTheirDifferencesToTheDifference) {
  const EventComparison comparison =
      MustCompare(ResultOf("a", OneRequest(6, 2)), ResultOf("b", OneRequest(8, 2.5)));
  ASSERT_THAT(comparison.attributions(), SizeIs(2));
  for (const Attribution& attribution : comparison.attributions()) {
    double first = 0;
    double second = 0;
    for (const Attribution::Part& part : attribution.parts()) {
      first += part.first_s();
      second += part.second_s();
    }
    EXPECT_NEAR(first, attribution.first_s(), kTiny) << attribution.metric();
    EXPECT_NEAR(second, attribution.second_s(), kTiny) << attribution.metric();
  }
  const Attribution& tpot = comparison.attributions(0);
  EXPECT_EQ(tpot.metric(), "tpot.mean");
  EXPECT_EQ(tpot.requests(), 1);
  // Gaps: 1 at the head, 5, hop 2, then 6 and 7, hop 1: 15 and 16. The other: 2.5 more each.
  EXPECT_NEAR(tpot.first_s(), 0.0155, kTiny);
  EXPECT_NEAR(tpot.second_s(), 0.018, kTiny);
  std::map<std::string, double> differences;
  for (const Attribution::Part& part : tpot.parts()) {
    differences[part.what() + std::to_string(part.stage()) + part.phase()] =
        part.second_s() - part.first_s();
  }
  EXPECT_NEAR(differences.at("compute1decode"), 0.002, kTiny);
  EXPECT_NEAR(differences.at("hop0"), 0.0005, kTiny);
  EXPECT_NEAR(differences.at("compute0decode"), 0, kTiny);
  EXPECT_NEAR(differences.at("head-1"), 0, kTiny);
  // 1 ms in the queue, 10 + 10 of compute, hops of 2 and 1.
  EXPECT_NEAR(comparison.attributions(1).first_s(), 0.024, kTiny);
}

TEST(CompareEventsTest, OnlyRequestsThatFinishedInBothAreExplained) {
  HandMadeRun interrupted = OneRequest(6, 2);
  interrupted.End(0, EventLog::CANCELLED);
  EXPECT_THAT(MustCompare(ResultOf("a", OneRequest(6, 2)), ResultOf("b", std::move(interrupted)))
                  .attributions(),
              SizeIs(0));
}

TEST(CompareEventsTest, TheFirstDifferenceIsTold) {
  HandMadeRun shorter(2);
  shorter.Arrive(0, 10, 0).Run({Prefill(0, 0, 6, false)}, 0, {{0, 1, 1, 2}, {2, 3, 3, 4}});
  const EventComparison comparison =
      MustCompare(ResultOf("a", OneRequest(6, 2)), ResultOf("b", std::move(shorter)));
  EXPECT_EQ(comparison.same_micro_batches(), 0);
  EXPECT_EQ(comparison.divergence(),
            "only a has the prefill of request 0's tokens 0-9, its last; only b has the prefill of "
            "request 0's tokens 0-5");
  EXPECT_EQ(comparison.pairs(), 1);
  EXPECT_EQ(comparison.alike_pairs(), 0);
  EXPECT_EQ(comparison.first_alone(), 2);
  // Of 10 and of 6 tokens: not lined up.
  EXPECT_EQ(Find(comparison, "compute", 0, "prefill").lined_up(), 0);
}

TEST(LineUpTest, WhatCannotBeLinedUpIsRefusedByName) {
  const Result run = ResultOf("a", OneRequest(6, 2));
  Result other = ResultOf("b", OneRequest(6, 2));
  other.clear_event_log();
  absl::Status status = LineUp(run, other).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(),
              HasSubstr("b has no events: write it with `fabricast simulate --out"));
  other = ResultOf("b", HandMadeRun(2));
  EXPECT_THAT(LineUp(run, other).status().message(), HasSubstr("b: nothing ran in it"));
  other.set_event_log("noise");
  EXPECT_THAT(LineUp(run, other).status().message(), HasSubstr("b: the events are broken"));
  other.add_stages();
  EXPECT_THAT(LineUp(run, other).status().message(),
              HasSubstr("not the same number of stages: a has 2, b has 3"));
  other.mutable_inputs()->set_workload_description("two");
  EXPECT_THAT(LineUp(run, other).status().message(),
              HasSubstr("not the same workload: a has one request, b has two"));
  other.mutable_inputs()->set_model("n");
  EXPECT_THAT(LineUp(run, other).status().message(), HasSubstr("not the same model: a has m"));
}

std::string ReadAll(const std::string& file) {
  std::ifstream in(file);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

TEST(WriteEventsTest, EveryEventIsALineWithBothTimes) {
  const absl::StatusOr<LinedUpRuns> runs =
      LineUp(ResultOf("a", OneRequest(6, 2)), ResultOf("b", OneRequest(8, 2.5)));
  const std::string file = ::testing::TempDir() + "/events.csv";
  ASSERT_TRUE(WriteEvents(*runs, file).ok());
  const std::string text = ReadAll(file);
  EXPECT_THAT(text, HasSubstr("event,stage,phase,alike,first_generation,first_micro_batch,"));
  EXPECT_THAT(text, HasSubstr("\ncompute,1,decode,1,0,1,32000000,6000000,0,1,33000000,8000000,\n"));
  EXPECT_THAT(text, HasSubstr("\nstep,,,1,0,1,25000000,14000000,0,1,25500000,16500000,0:10\n"));
  // A header; 4 events at each of two stages of three micro-batches; 3 steps, 2 turnarounds.
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1 + 3 * 2 * 4 + 3 + 2);
  EXPECT_THAT(WriteEvents(*runs, "/nowhere/events.csv").message(),
              HasSubstr("/nowhere/events.csv"));
}

TEST(WriteLinedUpTraceTest, StagesAndHopsOfBothRunsStandSideBySide) {
  const absl::StatusOr<LinedUpRuns> runs =
      LineUp(ResultOf("a", OneRequest(6, 2)), ResultOf("b", OneRequest(8, 2.5)));
  const std::string file = ::testing::TempDir() + "/trace.json";
  ASSERT_TRUE(WriteLinedUpTrace(*runs, file).ok());
  std::vector<std::string> tracks;
  std::map<int, int> slices;  // by process
  const nlohmann::json trace = nlohmann::json::parse(ReadAll(file));
  for (const nlohmann::json& event : trace.at("traceEvents")) {
    if (event.at("name") == "thread_name") tracks.push_back(event.at("args").at("name"));
    if (event.at("ph") == "X") ++slices[event.at("pid")];
    EXPECT_FALSE(event.at("args").contains("bytes")) << "events do not know bytes";
  }
  EXPECT_THAT(tracks,
              ElementsAre("stage 0: a", "stage 0: b", "stage 1: a", "stage 1: b", "hop 0 to 1: a",
                          "hop 0 to 1: b", "hop 1 to 0: a", "hop 1 to 0: b"));
  // Two stages, two hops, three micro-batches, two runs.
  EXPECT_EQ(slices.size(), 2u);
  for (const auto& [process, count] : slices) EXPECT_EQ(count, 2 * 3 * 2) << process;
}

}  // namespace
}  // namespace fabricast
