#include "runtime/workload/workload.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/shared_data.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kMany = 100'000;

Workload Make(const std::string& spec, const WorkloadOptions& options = {}) {
  absl::StatusOr<Workload> workload = MakeWorkload(spec, options);
  if (!workload.ok()) {
    ADD_FAILURE() << workload.status();
    Workload none;
    none.requests.resize(1);
    return none;
  }
  return *std::move(workload);
}

std::string ErrorOf(const std::string& spec, const WorkloadOptions& options) {
  const absl::Status status = MakeWorkload(spec, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

std::vector<double> Arrivals(const Workload& workload) {
  std::vector<double> arrivals;
  for (const Request& request : workload.requests) arrivals.push_back(request.arrival_s);
  return arrivals;
}

std::vector<int64_t> PromptTokens(const Workload& workload) {
  std::vector<int64_t> tokens;
  for (const Request& request : workload.requests) tokens.push_back(request.prompt_tokens);
  return tokens;
}

struct Moments {
  double mean;
  double variance;
};

Moments MomentsOfGaps(const Workload& workload) {
  const std::vector<double> arrivals = Arrivals(workload);
  const double n = arrivals.size() - 1;
  double sum = 0;
  double squares = 0;
  for (size_t i = 1; i < arrivals.size(); ++i) {
    const double gap = arrivals[i] - arrivals[i - 1];
    sum += gap;
    squares += gap * gap;
  }
  return {sum / n, squares / n - (sum / n) * (sum / n)};
}

// Three requests at 0, 1 and 3 s.
std::string SmallTrace() {
  const std::string path = ::testing::TempDir() + "/small.csv";
  std::ofstream(path) << "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                         "2023-11-16 18:00:00,100,10\n"
                         "2023-11-16 18:00:01,200,20\n"
                         "2023-11-16 18:00:03,300,33\n";
  return path;
}

TEST(WorkloadTest, ClosedLoopHasNoArrivals) {
  const Workload workload = Make("closed:concurrency=8,requests=64,input=512,output=128");
  EXPECT_EQ(workload.concurrency, 8);
  EXPECT_EQ(workload.description, "closed loop, 8 at a time, 64 requests, 512 in, 128 out");
  ASSERT_EQ(workload.requests.size(), 64);
  for (const Request& request : workload.requests) {
    EXPECT_EQ(request.arrival_s, 0);
    EXPECT_EQ(request.prompt_tokens, 512);
    EXPECT_EQ(request.output_tokens, 128);
  }
}

// Tolerances are four standard errors: sd / sqrt(n) for a mean, variance sqrt((kurtosis - 1) / n)
// for a variance.

TEST(WorkloadTest, PoissonGapsAreExponential) {
  const Workload workload =
      Make(absl::StrCat("poisson:rate=2,requests=", kMany + 1, ",input=1,output=1"));
  EXPECT_EQ(workload.concurrency, 0);
  EXPECT_EQ(workload.requests[0].arrival_s, 0);
  const Moments gaps = MomentsOfGaps(workload);
  // Mean 1/2, sd 1/2: 4 x 0.5 / 316 = 0.0063. Kurtosis 9: 4 x 0.25 x sqrt(8 / 100,000) = 0.0089.
  EXPECT_NEAR(gaps.mean, 0.5, 0.0063);
  EXPECT_NEAR(gaps.variance, 0.25, 0.0089);
}

TEST(WorkloadTest, GammaGapsHaveTheirCoefficientOfVariation) {
  // rate 2, CV 2: mean 1/2, sd 1, shape 1/4, kurtosis 3 + 6/shape = 27.
  const Moments bursty = MomentsOfGaps(
      Make(absl::StrCat("gamma:rate=2,cv=2,requests=", kMany + 1, ",input=1,output=1")));
  EXPECT_NEAR(bursty.mean, 0.5, 4 * 1.0 / 316);
  EXPECT_NEAR(bursty.variance, 1.0, 4 * std::sqrt(26.0 / kMany));  // 0.064
  // rate 2, CV 1/2: sd 1/4, shape 4, kurtosis 4.5.
  const Moments even = MomentsOfGaps(
      Make(absl::StrCat("gamma:rate=2,cv=0.5,requests=", kMany + 1, ",input=1,output=1")));
  EXPECT_NEAR(even.mean, 0.5, 4 * 0.25 / 316);
  EXPECT_NEAR(even.variance, 0.0625, 4 * 0.0625 * std::sqrt(3.5 / kMany));
}

TEST(WorkloadTest, SameSeedSameRequests) {
  const std::string spec = "gamma:rate=2,cv=2,requests=50,input=uniform(1;1000),output=9";
  EXPECT_EQ(Arrivals(Make(spec)), Arrivals(Make(spec)));
  EXPECT_EQ(PromptTokens(Make(spec)), PromptTokens(Make(spec)));
  EXPECT_NE(Arrivals(Make(spec)), Arrivals(Make(spec, {.seed = 2})));
  EXPECT_NE(PromptTokens(Make(spec)), PromptTokens(Make(spec, {.seed = 2})));
}

// The values themselves, so that a change of compiler, library or order of drawing is noticed.
TEST(WorkloadTest, SeedOneDrawsTheseRequests) {
  const Workload workload =
      Make("poisson:rate=2,requests=4,input=lognormal(512;0.8;8192),output=uniform(1;1000)");
  std::vector<int64_t> arrivals_ns;
  for (double arrival_s : Arrivals(workload)) arrivals_ns.push_back(std::llround(arrival_s * 1e9));
  EXPECT_THAT(arrivals_ns, ElementsAre(0, 583'166'309, 1'864'797'573, 2'201'022'098));
  EXPECT_THAT(PromptTokens(workload), ElementsAre(86, 201, 1205, 317));
}

TEST(WorkloadTest, AnotherRateLeavesTheLengths) {
  EXPECT_EQ(PromptTokens(Make("poisson:rate=1,requests=50,input=uniform(1;1000),output=9")),
            PromptTokens(Make("closed:concurrency=4,requests=50,input=uniform(1;1000),output=7")));
}

TEST(WorkloadTest, FewerRequestsAreTheFirstOfMore) {
  const std::vector<double> more = Arrivals(Make("poisson:rate=1,requests=50,input=1,output=1"));
  EXPECT_EQ(Arrivals(Make("poisson:rate=1,requests=20,input=1,output=1")),
            std::vector<double>(more.begin(), more.begin() + 20));
}

TEST(WorkloadTest, ReadsATrace) {
  const Workload workload = Make(SmallTrace());
  EXPECT_EQ(workload.name, SmallTrace());
  EXPECT_EQ(workload.concurrency, 0);
  EXPECT_THAT(Arrivals(workload), ElementsAre(0, 1, 3));
  // (100 + 200 + 300) / 3 and (10 + 20 + 33) / 3.
  EXPECT_EQ(workload.description,
            absl::StrCat("trace ", SmallTrace(), ", 3 requests in 3 s, on average 200 in, 21 out"));
}

TEST(WorkloadTest, TheWindowIsCutFirstThenTheRateScaled) {
  const Workload workload =
      Make(SmallTrace(), {.rate_scale = 2, .window_start_s = 0.5, .window_end_s = 3.5});
  // (1 - 0.5) / 2 and (3 - 0.5) / 2.
  EXPECT_THAT(Arrivals(workload), ElementsAre(0.25, 1.25));
  EXPECT_THAT(workload.description, HasSubstr(", window 0.5 to 3 s: 2 requests, 2 times the rate"));
  // The end is not in the window.
  EXPECT_THAT(Arrivals(Make(SmallTrace(), {.window_end_s = 3})), ElementsAre(0, 1));
}

TEST(WorkloadTest, MaxRequestsKeepsTheFirst) {
  EXPECT_THAT(Arrivals(Make(SmallTrace(), {.max_requests = 2})), ElementsAre(0, 1));
  EXPECT_THAT(Arrivals(Make(SmallTrace(), {.max_requests = 5})), ElementsAre(0, 1, 3));
  EXPECT_EQ(Make("chat-1", {.max_requests = 3}).requests.size(), 3);
  EXPECT_EQ(Make("chat-1", {.max_requests = 3}).description,
            "closed loop, 1 at a time, 16 requests, 512 in, 128 out, the first 3 requests");
}

TEST(WorkloadTest, OptionsThatMakeNoSenseAreRefused) {
  EXPECT_THAT(ErrorOf(SmallTrace(), {.rate_scale = 0}), HasSubstr("rate_scale: 0: give"));
  EXPECT_THAT(ErrorOf(SmallTrace(), {.rate_scale = -1}), HasSubstr("rate_scale: -1: give"));
  EXPECT_THAT(ErrorOf(SmallTrace(), {.rate_scale = NAN}), HasSubstr("rate_scale: nan: give"));
  EXPECT_THAT(ErrorOf(SmallTrace(), {.window_start_s = -1}), HasSubstr("window: -1 to"));
  EXPECT_THAT(ErrorOf(SmallTrace(), {.window_start_s = 2, .window_end_s = 2}),
              HasSubstr("window: 2 to 2"));
  EXPECT_THAT(ErrorOf(SmallTrace(), {.window_end_s = NAN}), HasSubstr("window: 0 to nan"));
  EXPECT_THAT(ErrorOf(SmallTrace(), {.max_requests = -1}), HasSubstr("max_requests: -1: give"));
  EXPECT_THAT(ErrorOf(SmallTrace(), {.window_start_s = 1.5, .window_end_s = 2.5}),
              HasSubstr("window: no request arrives from 1.5 to 2.5 s: the last arrives at 3 s"));
  EXPECT_THAT(ErrorOf("chat-1", {.rate_scale = 2}),
              HasSubstr("workload chat-1: rate_scale: a closed loop has no arrival times"));
  EXPECT_THAT(ErrorOf("chat-1", {.window_end_s = 2}),
              HasSubstr("workload chat-1: window: a closed loop has no arrival times"));
}

TEST(WorkloadTest, WhatIsUnknownIsNotFoundAndNamesTheCatalogue) {
  const absl::Status status = MakeWorkload("chat-2").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("workload \"chat-2\": not in the catalogue"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("chat-1, chat-closed-32, chat-closed-8"));
  EXPECT_EQ(MakeWorkload("no/such.csv").status(), absl::NotFoundError("no/such.csv: no such file"));
  EXPECT_EQ(MakeWorkload("bundled:no.csv").status().code(), absl::StatusCode::kNotFound);
}

TEST(WorkloadTest, EveryWorkloadOfTheCatalogueCanBeMade) {
  for (const WorkloadName& entry : WorkloadCatalogue()) {
    const Workload workload = Make(entry.name);
    EXPECT_EQ(workload.name, entry.name);
    EXPECT_THAT(workload.warnings, IsEmpty()) << entry.name;
    EXPECT_FALSE(entry.description.empty()) << entry.name;
    EXPECT_EQ(PromptTokens(workload), PromptTokens(Make(entry.spec))) << entry.name;
  }
  EXPECT_TRUE(
      std::is_sorted(WorkloadCatalogue().begin(), WorkloadCatalogue().end(),
                     [](const WorkloadName& a, const WorkloadName& b) { return a.name < b.name; }));
}

// The recorded traces, where they are at hand. Counts are those of the files (lines less the
// header).
TEST(WorkloadTest, PublishedTracesLoadWhole) {
  const std::string folder = SharedDataFolder();
  if (folder.empty()) GTEST_SKIP() << "no folder of recorded traces";
  const Workload conversation = Make(folder + "/traces/AzureLLMInferenceTrace_conv.csv");
  EXPECT_EQ(conversation.requests.size(), 19'366);
  EXPECT_THAT(conversation.warnings, IsEmpty());
  // 19:14:08.4025270 - 18:15:46.6805900.
  EXPECT_DOUBLE_EQ(conversation.requests.back().arrival_s, 3501.721937);
  const Workload code = Make(folder + "/traces/AzureLLMInferenceTrace_code.csv");
  EXPECT_EQ(code.requests.size(), 8'819);
  EXPECT_THAT(code.warnings, IsEmpty());
  const Workload mooncake = Make(folder + "/traces/mooncake_conversation_trace.jsonl");
  EXPECT_EQ(mooncake.requests.size(), 12'031);
  EXPECT_THAT(mooncake.warnings, IsEmpty());
  EXPECT_DOUBLE_EQ(mooncake.requests.back().arrival_s, 3536.999);
}

}  // namespace
}  // namespace fabricast
