// Changes are numbers; causes are sentences, of which only the nouns that carry the meaning are
// checked.
#include "runtime/metrics/comparison.h"

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

// Three stages, the last the busiest; decode reads weights, prefill computes.
Result SomeRun() {
  Result result;
  result.set_label("trinity_200g");
  result.set_duration_s(100);
  result.set_requests(4);
  result.set_finished(4);
  result.set_output_tokens_per_s(8);
  result.mutable_tpot()->set_count(4);
  result.mutable_tpot()->set_mean(0.16);
  result.mutable_tpot()->set_p50(0.16);
  result.mutable_itl()->set_count(400);
  result.mutable_itl()->set_mean(0.16);
  result.mutable_itl()->set_p50(0.16);
  result.mutable_ttft()->set_count(4);
  result.mutable_ttft()->set_mean(2);
  result.mutable_queue_wait()->set_count(4);
  result.mutable_queue_wait()->set_mean(0.1);
  for (int s = 0; s < 3; ++s) {
    StageResult& stage = *result.add_stages();
    stage.set_stage(s);
    stage.set_busy_s(s == 2 ? 60 : 50);
    stage.set_busy_fraction(stage.busy_s() / 100);
    stage.mutable_decode()->set_weight_read_s(36);
    stage.mutable_decode()->set_overhead_s(4);
    stage.mutable_prefill()->set_matrix_compute_s(9);
    stage.mutable_prefill()->set_prefill_attention_s(1);
    result.mutable_plan()->add_stages()->add_gpus("node" + std::to_string(s) + ".gpu0");
    HopResult& hop = *result.add_hops();
    hop.set_from_stage(s);
    hop.set_to_stage((s + 1) % 3);
    hop.set_exposed_s(s == 1 ? 5 : 1);
  }
  return result;
}

std::string CausesOf(const Result& result) { return absl::StrJoin(Causes(result, result), "\n"); }

// The sentence about `metric`.
std::string CauseOf(const Result& result, const std::string& metric) {
  for (const std::string& cause : Causes(result, result)) {
    if (cause.find(metric) != std::string::npos) return cause;
  }
  ADD_FAILURE() << "nothing about " << metric;
  return "";
}

TEST(CausesTest, DecodeNamesWhatTakesMostOfTheBusiestStage) {
  EXPECT_THAT(CauseOf(SomeRun(), "TPOT"),
              AllOf(HasSubstr("weight"), HasSubstr("stage 2"), HasSubstr("node2.gpu0"),
                    HasSubstr("90 %")));  // 36 of 40 s

  Result attention = SomeRun();
  attention.mutable_stages(2)->mutable_decode()->set_decode_attention_s(100);
  EXPECT_THAT(CauseOf(attention, "TPOT"), HasSubstr("KV cache"));

  Result overhead = SomeRun();
  overhead.mutable_stages(2)->mutable_decode()->set_overhead_s(100);
  EXPECT_THAT(CauseOf(overhead, "TPOT"), HasSubstr("overhead"));

  Result all_reduces = SomeRun();
  all_reduces.mutable_stages(2)->mutable_decode()->set_collective_s(100);
  EXPECT_THAT(CauseOf(all_reduces, "TPOT"), HasSubstr("all-reduce"));
}

TEST(CausesTest, TheBusiestStageIsTheOneThatIsNamed) {
  Result result = SomeRun();
  result.mutable_stages(0)->set_busy_s(80);
  EXPECT_THAT(CauseOf(result, "TPOT"), AllOf(HasSubstr("stage 0"), HasSubstr("node0.gpu0")));
}

TEST(CausesTest, TheWireThatStagesWaitForMostIsNamedWithItsShare) {
  // 5 of 100 s into stage 2.
  EXPECT_THAT(CauseOf(SomeRun(), "TPOT"), HasSubstr("5.00 %"));
}

TEST(CausesTest, PrefillNamesArithmetic) {
  EXPECT_THAT(CauseOf(SomeRun(), "TTFT"),
              AllOf(HasSubstr("prefill"), HasSubstr("arithmetic"), HasSubstr("stage 2")));
  Result attention = SomeRun();
  attention.mutable_stages(2)->mutable_prefill()->set_prefill_attention_s(100);
  EXPECT_THAT(CauseOf(attention, "TTFT"), HasSubstr("attention"));
}

TEST(CausesTest, ChunksThatSlowTokensDownAreNamed) {
  Result result = SomeRun();
  result.mutable_stages(2)->mutable_mixed()->set_matrix_compute_s(100);
  EXPECT_THAT(CauseOf(result, "TPOT"), AllOf(HasSubstr("prefill"), HasSubstr("arithmetic")));
}

TEST(CausesTest, WaitingForAdmissionIsNamedWhereItIsMostOfTtft) {
  Result result = SomeRun();
  result.mutable_queue_wait()->set_mean(1.5);  // of 2 s
  EXPECT_THAT(CauseOf(result, "TTFT"), AllOf(HasSubstr("75 %"), HasSubstr("admission")));
  EXPECT_THAT(CauseOf(result, "TTFT"), Not(HasSubstr("KV cache")));
  result.set_kv_peak_fraction(0.99);
  EXPECT_THAT(CauseOf(result, "TTFT"), HasSubstr("KV cache"));
}

TEST(CausesTest, WithoutTokensBetweenThereIsNoTpot) {
  Result result = SomeRun();
  result.mutable_tpot()->Clear();
  EXPECT_THAT(CausesOf(result), AllOf(HasSubstr("TTFT"), Not(HasSubstr("TPOT"))));
}

TEST(CausesTest, WithoutFinishedRequestsThereIsNothingToExplain) {
  Result result = SomeRun();
  result.set_finished(0);
  EXPECT_THAT(Causes(result, result), SizeIs(1));
  EXPECT_THAT(Causes(Result(), Result()), SizeIs(1));
}

TEST(CausesTest, ARunWithoutCausesStillNamesItsBusiestStage) {
  // A measured run knows how long a stage was busy, not with what.
  Result result = SomeRun();
  for (StageResult& stage : *result.mutable_stages()) {
    stage.clear_decode();
    stage.clear_prefill();
  }
  EXPECT_THAT(CauseOf(result, "TPOT"), HasSubstr("stage 2"));
  result.clear_plan();
  EXPECT_THAT(CauseOf(result, "TPOT"), HasSubstr("stage 2"));
}

TEST(CausesTest, AgainstABaselineBothValuesAndTheChangeAreGiven) {
  Result faster = SomeRun();
  faster.mutable_tpot()->set_mean(0.12);
  const std::string causes = absl::StrJoin(Causes(SomeRun(), faster), "\n");
  // 160 to 120 ms: a quarter less.
  EXPECT_THAT(causes, AllOf(HasSubstr("160.00 ms"), HasSubstr("120.00 ms"), HasSubstr("-25.00 %")));
}

std::map<std::string, MetricChange> ChangesOf(const Comparison& comparison, int index) {
  std::map<std::string, MetricChange> changes;
  for (const MetricChange& change : comparison.changes(index).metrics()) {
    changes[change.metric()] = change;
  }
  return changes;
}

TEST(CompareTest, EveryResultIsComparedWithTheFirst) {
  Result twice = SomeRun();
  twice.set_label("twice");
  twice.set_output_tokens_per_s(16);
  Result less = SomeRun();
  less.set_label("less");
  less.mutable_tpot()->set_p50(0.12);
  const std::vector<Result> results = {SomeRun(), twice, less};
  const Comparison comparison = Compare(results);
  EXPECT_EQ(comparison.schema(), "fabricast.comparison.v1");
  ASSERT_EQ(comparison.results_size(), 3);
  EXPECT_EQ(comparison.results(0).label(), "trinity_200g");
  ASSERT_EQ(comparison.changes_size(), 2);
  EXPECT_EQ(comparison.changes(0).label(), "twice");
  EXPECT_EQ(comparison.changes(1).label(), "less");

  const MetricChange tokens = ChangesOf(comparison, 0).at("output_tokens_per_s");
  EXPECT_EQ(tokens.baseline(), 8);
  EXPECT_EQ(tokens.value(), 16);
  EXPECT_DOUBLE_EQ(tokens.change(), 1);
  EXPECT_DOUBLE_EQ(ChangesOf(comparison, 1).at("tpot.p50").change(), -0.25);
  // The same, and 0 on both sides, is no change.
  EXPECT_EQ(ChangesOf(comparison, 1).at("output_tokens_per_s").change(), 0);
  EXPECT_EQ(ChangesOf(comparison, 0).at("kv_peak_fraction").change(), 0);
  EXPECT_GE(comparison.changes(0).causes_size(), 2);
}

Comparison WithTpot(double after) {
  Result other = SomeRun();
  other.set_label("faster");
  other.mutable_tpot()->set_mean(after);
  const std::vector<Result> results = {SomeRun(), other};
  return Compare(results);
}

TEST(AnswerTest, SaysWhetherTheChangeIsMoreThanOnePercent) {
  // From 160 ms.
  const std::string small = Answer(WithTpot(0.1592), 0);
  EXPECT_THAT(small, HasSubstr("faster instead of trinity_200g changes mean TPOT by -0.50 %"));
  EXPECT_THAT(small, HasSubstr("less than 1 % either way"));
  EXPECT_THAT(Answer(WithTpot(0.08), 0), HasSubstr("-50.00 % and"));
  EXPECT_THAT(Answer(WithTpot(0.08), 0), HasSubstr(": more than 1 %."));
}

TEST(AnswerTest, BoundsOnBothSidesOfOnePercentLeaveItOpen) {
  Comparison comparison = WithTpot(0.1592);
  Interval& interval = *comparison.add_intervals();
  interval.set_label("faster");
  interval.set_metric("tpot.mean");
  interval.set_change_low(-0.03);
  interval.set_change_high(-0.002);
  EXPECT_THAT(Answer(comparison, 0), HasSubstr("-0.50 % (-3.00 to -0.20)"));
  EXPECT_THAT(Answer(comparison, 0), HasSubstr("more than 1 % or less, within what is known"));
}

TEST(CompareTest, AChangeFromZeroHasNoShare) {
  Result none = SomeRun();
  none.set_requests_per_s(0);
  Result some = SomeRun();
  some.set_requests_per_s(2);
  const std::vector<Result> results = {none, some};
  const MetricChange change = ChangesOf(Compare(results), 0).at("requests_per_s");
  EXPECT_EQ(change.value(), 2);
  EXPECT_FALSE(change.has_change());
}

TEST(CompareTest, StagesThatOneOfThemHasNotAreLeftOut) {
  Result shorter = SomeRun();
  shorter.mutable_stages()->RemoveLast();
  shorter.mutable_hops()->RemoveLast();
  const std::vector<Result> results = {SomeRun(), shorter};
  const std::map<std::string, MetricChange> changes = ChangesOf(Compare(results), 0);
  EXPECT_TRUE(changes.contains("stages[1].busy_fraction"));
  EXPECT_FALSE(changes.contains("stages[2].busy_fraction"));
}

TEST(CompareTest, OneResultHasNothingToBeComparedWith) {
  const Result run = SomeRun();
  const Comparison comparison = Compare({&run, 1});
  EXPECT_EQ(comparison.results_size(), 1);
  EXPECT_EQ(comparison.changes_size(), 0);
}

}  // namespace
}  // namespace fabricast
