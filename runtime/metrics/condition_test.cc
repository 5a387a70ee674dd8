#include "runtime/metrics/condition.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

Condition Parse(absl::string_view text) {
  absl::StatusOr<Condition> condition = ParseCondition(text);
  if (!condition.ok()) ADD_FAILURE() << condition.status();
  return condition.ok() ? *std::move(condition) : Condition();
}

Result WithTpot(double p50) {
  Result result;
  result.mutable_tpot()->set_count(10);
  result.mutable_tpot()->set_p50(p50);
  return result;
}

bool Holds(absl::string_view text, double value, double baseline) {
  const Result result = WithTpot(value);
  const Result before = WithTpot(baseline);
  const absl::StatusOr<ConditionOutcome> outcome = Evaluate(Parse(text), result, &before);
  EXPECT_TRUE(outcome.ok()) << outcome.status();
  return outcome.ok() && outcome->holds;
}

TEST(ParseConditionTest, ASignAndPercentAreRelativeToTheBaseline) {
  const Condition condition = Parse("tpot.p50 > +1%");
  EXPECT_EQ(condition.text, "tpot.p50 > +1%");
  EXPECT_EQ(condition.metric, "tpot.p50");
  EXPECT_EQ(condition.op, ">");
  EXPECT_DOUBLE_EQ(condition.value, 0.01);
  EXPECT_EQ(condition.kind, Condition::Kind::kRelative);
  EXPECT_TRUE(condition.NeedsBaseline());
  EXPECT_DOUBLE_EQ(Parse("output_tokens_per_s < -5%").value, -0.05);
}

TEST(ParseConditionTest, ASignAloneIsADifferenceToTheBaseline) {
  const Condition condition = Parse("ttft.p99 > +200ms");
  EXPECT_DOUBLE_EQ(condition.value, 0.2);
  EXPECT_EQ(condition.kind, Condition::Kind::kDifference);
  EXPECT_TRUE(condition.NeedsBaseline());
  EXPECT_EQ(Parse("preemptions > +0").kind, Condition::Kind::kDifference);
  EXPECT_EQ(Parse("preemptions < -0").kind, Condition::Kind::kDifference);
}

TEST(ParseConditionTest, NoSignIsAbsolute) {
  const Condition condition = Parse("ttft.p99 > 6s");
  EXPECT_EQ(condition.value, 6);
  EXPECT_EQ(condition.kind, Condition::Kind::kAbsolute);
  EXPECT_FALSE(condition.NeedsBaseline());
  const Condition percent = Parse("stages[2].bubble_fraction > 30%");
  EXPECT_DOUBLE_EQ(percent.value, 0.3);
  EXPECT_EQ(percent.kind, Condition::Kind::kAbsolute);
}

TEST(ParseConditionTest, UnitsAreSecondsMillisecondsMicrosecondsPercentOrNone) {
  EXPECT_DOUBLE_EQ(Parse("tpot.p50 > 2s").value, 2);
  EXPECT_DOUBLE_EQ(Parse("tpot.p50 > 2ms").value, 2e-3);
  EXPECT_DOUBLE_EQ(Parse("tpot.p50 > 2us").value, 2e-6);
  EXPECT_DOUBLE_EQ(Parse("tpot.p50 > 2%").value, 0.02);
  EXPECT_DOUBLE_EQ(Parse("tpot.p50 > 2").value, 2);
  EXPECT_DOUBLE_EQ(Parse("tpot.p50 > 1.5e-3").value, 1.5e-3);
  EXPECT_DOUBLE_EQ(Parse("tpot.p50 > .5 ms").value, 0.5e-3);
}

TEST(ParseConditionTest, AllFourOperatorsAndAnySpacing) {
  EXPECT_EQ(Parse("finished<5").op, "<");
  EXPECT_EQ(Parse("finished<=5").op, "<=");
  EXPECT_EQ(Parse("finished>5").op, ">");
  const Condition spaced = Parse("  finished\t>=  5  ");
  EXPECT_EQ(spaced.op, ">=");
  EXPECT_EQ(spaced.metric, "finished");
  EXPECT_EQ(spaced.value, 5);
  EXPECT_EQ(spaced.text, "finished\t>=  5");
}

TEST(ParseConditionTest, ErrorsSayWhatIsMissingAndHowToWriteIt) {
  const struct {
    const char* text;
    const char* why;
  } cases[] = {
      {"", "no >, >=, < or <="},
      {"tpot.p50", "no >, >=, < or <="},
      {"tpot.p50 = 3", "no >, >=, < or <="},
      {"> 3", "no metric"},
      {"  >= 3", "no metric"},
      {"tpot.p50 >", "no value"},
      {"tpot.p50 >=  ", "no value"},
      {"tpot.p50 > fast", "the value is not a number with the unit %, s, ms, us or none"},
      {"tpot.p50 > 3 minutes", "the value is not a number"},
      {"tpot.p50 > %", "the value is not a number"},
      {"tpot.p50 > ms", "the value is not a number"},
      {"tpot.p50 > +", "the value is not a number"},
      {"tpot.p50 > +-3", "the value is not a number"},
      {"tpot.p50 > 3%%", "the value is not a number"},
      {"tpot.p50 > > 3", "the value is not a number"},
      {"tpot.p50 > 3 > 2", "the value is not a number"},
      {"tpot.p50 > inf", "the value is not a number"},
      {"tpot.p50 > nan", "the value is not a number"},
      {"tpot.p50 > 1e999", "the value is not a number"},
      {"tpot.p51 > 3", "no metric is called 'tpot.p51': at 'p51' use one of count, mean, p50"},
      {"tpot > 3", "metric 'tpot' is a group"},
      {"stages[0].busy > 3", "at 'busy' use one of"},
      {"stages[100000].busy > 3", "at 'busy' use one of"},
      {"plan.stages[0].layers > 3", "at 'layers' use one of"},
      {"label > 3", "no metric is called 'label'"},
  };
  for (const auto& c : cases) {
    const absl::Status status = ParseCondition(c.text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(
        std::string(status.message()),
        AllOf(StartsWith(absl::StrCat("condition '", c.text, "': ")), HasSubstr(c.why),
              HasSubstr("write METRIC OP VALUE, such as 'tpot.p50 > +1%' or 'ttft.p99 > 6s'")));
  }
}

TEST(ParseConditionTest, IndicesAreForTheRunToCheck) {
  const Condition condition = Parse("stages[7].bubble_fraction > 30%");
  const absl::Status status = Evaluate(condition, WithTpot(1), nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the run has 0 stages"));
}

TEST(EvaluateTest, AbsoluteConditionsLookAtTheRunAlone) {
  const Result result = WithTpot(0.25);
  for (const auto& [text, holds] : {std::pair("tpot.p50 > 249ms", true),
                                    {"tpot.p50 > 250ms", false},
                                    {"tpot.p50 >= 250ms", true},
                                    {"tpot.p50 < 250ms", false},
                                    {"tpot.p50 <= 250ms", true},
                                    {"tpot.p50 < 251ms", true}}) {
    const absl::StatusOr<ConditionOutcome> outcome = Evaluate(Parse(text), result, nullptr);
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    EXPECT_EQ(outcome->holds, holds) << text;
    EXPECT_EQ(outcome->explanation, "tpot.p50 = 0.25");
  }
}

TEST(EvaluateTest, DifferencesAreToTheBaseline) {
  EXPECT_TRUE(Holds("tpot.p50 > +100ms", 0.75, 0.5));
  EXPECT_FALSE(Holds("tpot.p50 > +250ms", 0.75, 0.5));
  EXPECT_TRUE(Holds("tpot.p50 >= +250ms", 0.75, 0.5));
  EXPECT_TRUE(Holds("tpot.p50 < -100ms", 0.5, 0.75));
  EXPECT_FALSE(Holds("tpot.p50 < -100ms", 0.75, 0.5));
}

TEST(EvaluateTest, RelativeConditionsAreInPartsOfTheBaseline) {
  // 0.75 is 50 % above 0.5; 0.5 a third below 0.75.
  EXPECT_TRUE(Holds("tpot.p50 > +49%", 0.75, 0.5));
  EXPECT_FALSE(Holds("tpot.p50 > +50%", 0.75, 0.5));
  EXPECT_TRUE(Holds("tpot.p50 >= +50%", 0.75, 0.5));
  EXPECT_TRUE(Holds("tpot.p50 < -33%", 0.5, 0.75));
  EXPECT_FALSE(Holds("tpot.p50 < -34%", 0.5, 0.75));
  const Result result = WithTpot(0.75);
  const Result baseline = WithTpot(0.5);
  EXPECT_EQ(Evaluate(Parse("tpot.p50 > +1%"), result, &baseline)->explanation,
            "tpot.p50 = 0.75, baseline 0.5: +50 %");
  EXPECT_EQ(Evaluate(Parse("tpot.p50 > +1ms"), result, &baseline)->explanation,
            "tpot.p50 = 0.75, baseline 0.5: +0.25");
}

TEST(EvaluateTest, FromZeroAnyChangeIsBeyondEveryPercentage) {
  EXPECT_TRUE(Holds("tpot.p50 > +1000000%", 1e-9, 0));
  EXPECT_FALSE(Holds("tpot.p50 > +0%", 0, 0));
  EXPECT_TRUE(Holds("tpot.p50 >= +0%", 0, 0));
}

TEST(EvaluateTest, WithoutABaselineOnlyAbsoluteConditionsCanBeJudged) {
  for (const char* text : {"tpot.p50 > +1%", "tpot.p50 > +1ms"}) {
    const absl::Status status = Evaluate(Parse(text), WithTpot(1), nullptr).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(
        std::string(status.message()),
        AllOf(HasSubstr(text), HasSubstr("relative to a baseline"), HasSubstr("drop the sign")));
  }
}

TEST(EvaluateTest, WithoutSamplesThereIsNothingToJudge) {
  // Every request was rejected, or had a single output token: 0 s is not fast.
  const Result some = WithTpot(0.25);
  const Result none;
  EXPECT_EQ(Evaluate(Parse("tpot.p50 > 1s"), none, nullptr).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(Evaluate(Parse("tpot.p50 > +1%"), some, &none).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(Evaluate(Parse("tpot.p50 > +1%"), none, &some).status().code(),
            absl::StatusCode::kNotFound);
  // How many there are can be judged.
  const absl::StatusOr<ConditionOutcome> count = Evaluate(Parse("tpot.count < 1"), none, nullptr);
  ASSERT_TRUE(count.ok()) << count.status();
  EXPECT_TRUE(count->holds);
}

}  // namespace
}  // namespace fabricast
