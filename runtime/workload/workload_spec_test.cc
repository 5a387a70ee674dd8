#include "runtime/workload/workload_spec.h"

#include <string>
#include <variant>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const std::string& spec) {
  const absl::Status status = ParseWorkloadSpec(spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << spec;
  return std::string(status.message());
}

TEST(WorkloadSpecTest, ReadsAClosedLoop) {
  const auto spec = std::get<SyntheticSpec>(
      *ParseWorkloadSpec("closed:concurrency=8,requests=64,input=512,output=uniform(1;128)"));
  EXPECT_EQ(std::get<ClosedLoop>(spec.arrivals).concurrency, 8);
  EXPECT_EQ(spec.requests, 64);
  EXPECT_EQ(spec.Description(),
            "closed loop, 8 at a time, 64 requests, 512 in, uniform 1 to 128 out");
}

TEST(WorkloadSpecTest, ReadsRandomArrivals) {
  const auto poisson = std::get<SyntheticSpec>(
      *ParseWorkloadSpec("poisson:output=exponential(128;1000),input=512,requests=1,rate=0.5"));
  EXPECT_EQ(std::get<RandomArrivals>(poisson.arrivals).rate, 0.5);
  EXPECT_EQ(std::get<RandomArrivals>(poisson.arrivals).cv, 1);
  EXPECT_EQ(poisson.Description(),
            "Poisson arrivals, 0.5/s, 1 request, 512 in, exponential (mean 128, at most 1000) out");
  const auto gamma = std::get<SyntheticSpec>(
      *ParseWorkloadSpec("gamma:rate=2,cv=3,requests=10,input=lognormal(512;0.8;8192),output=128"));
  EXPECT_EQ(std::get<RandomArrivals>(gamma.arrivals).cv, 3);
  EXPECT_EQ(gamma.Description(),
            "gamma arrivals, 2/s, CV 3, 10 requests, lognormal (median 512, sigma 0.8, at most "
            "8192) in, 128 out");
}

TEST(WorkloadSpecTest, FilesAreKnownByEndingOrByPrefix) {
  const auto trace = [](const std::string& spec) {
    return std::get<TraceSpec>(*ParseWorkloadSpec(spec));
  };
  EXPECT_EQ(trace("a/b.csv").format, TraceFormat::kAzureCsv);
  EXPECT_EQ(trace("a/b.csv").file, "a/b.csv");
  EXPECT_EQ(trace("b.jsonl").format, TraceFormat::kJsonl);
  EXPECT_EQ(trace("azure:b.jsonl").format, TraceFormat::kAzureCsv);
  EXPECT_EQ(trace("azure:b.jsonl").file, "b.jsonl");
  EXPECT_EQ(trace("jsonl:a:b").file, "a:b");
  EXPECT_TRUE(trace("bundled:b.csv").bundled);
}

TEST(WorkloadSpecTest, KeysMustBeKnownPresentAndSingle) {
  EXPECT_EQ(ErrorOf("closed:concurrency=8,requests=64,input=512"),
            "workload closed: output: missing: closed takes concurrency, requests, input, output");
  EXPECT_EQ(ErrorOf("poisson:rate=1,cv=2,requests=64,input=512,output=1"),
            "workload poisson: cv: unknown: poisson takes rate, requests, input, output");
  EXPECT_EQ(ErrorOf("gamma:rate=1,rate=2,cv=2,requests=64,input=512,output=1"),
            "workload gamma: rate: given twice: give it once");
  EXPECT_THAT(ErrorOf("closed:"), HasSubstr("concurrency: missing"));
  EXPECT_THAT(ErrorOf("closed:,"), HasSubstr(": unknown: closed takes"));
  EXPECT_THAT(ErrorOf("closed:concurrency"), HasSubstr("concurrency: \"\": give a whole number"));
  EXPECT_THAT(ErrorOf("closed: concurrency=1"), HasSubstr(" concurrency: unknown"));
}

TEST(WorkloadSpecTest, BadNumbersNameTheKeyAndTheRange) {
  EXPECT_EQ(ErrorOf("closed:concurrency=0,requests=64,input=512,output=1"),
            "workload closed: concurrency: \"0\": give a whole number from 1 to 1000000");
  for (const char* requests : {"0", "-1", "10000001", "1.5", "many", "", "99999999999999999999"}) {
    EXPECT_THAT(
        ErrorOf(absl::StrCat("closed:concurrency=1,requests=", requests, ",input=1,output=1")),
        HasSubstr("requests: \""))
        << requests;
  }
  for (const char* rate : {"0", "-1", "nan", "inf", "1e-9", "1e9", "0x10", "fast", ""}) {
    EXPECT_THAT(ErrorOf(absl::StrCat("poisson:rate=", rate, ",requests=1,input=1,output=1")),
                HasSubstr("give a number from 1e-06 to 1e+06"))
        << rate;
  }
  for (const char* cv : {"0", "-1", "nan", "101"}) {
    EXPECT_THAT(ErrorOf(absl::StrCat("gamma:rate=1,cv=", cv, ",requests=1,input=1,output=1")),
                HasSubstr("give a number from 0.01 to 100"))
        << cv;
  }
  EXPECT_THAT(ErrorOf("closed:concurrency=1,requests=1,input=0,output=1"),
              HasSubstr("workload closed: input: \"0\": give a whole number from 1 to 10000000, "));
}

TEST(WorkloadSpecTest, AFileMustBeNamed) {
  EXPECT_THAT(ErrorOf("azure:"), HasSubstr("no file is named"));
  EXPECT_THAT(ErrorOf(std::string("jsonl:a\0b", 9)), HasSubstr("no NUL"));
}

TEST(WorkloadSpecTest, OtherSpecificationsAreNotFound) {
  for (const char* spec : {"", "chat", "Poisson:rate=1", "trace.txt", "closed", "closed=1"}) {
    EXPECT_EQ(ParseWorkloadSpec(spec).status().code(), absl::StatusCode::kNotFound) << spec;
  }
}

}  // namespace
}  // namespace fabricast
