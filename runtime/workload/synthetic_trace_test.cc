#include "runtime/workload/synthetic_trace.h"

#include "gtest/gtest.h"
#include "runtime/workload/bundled_traces.h"
#include "runtime/workload/workload.h"

namespace fabricast {
namespace {

TEST(SyntheticTraceTest, TheBundledFileIsWhatTheProgramPrints) {
  ASSERT_EQ(BundledTraces().size(), 1);
  EXPECT_EQ(SyntheticHourCsv(), BundledTraces()[0].contents)
      << "bazel run //runtime/workload:make_synthetic_trace > " << BundledTraces()[0].path;
}

TEST(SyntheticTraceTest, ItIsAnHourOfAbout500Requests) {
  const absl::StatusOr<Workload> workload = MakeWorkload("synthetic-hour");
  ASSERT_TRUE(workload.ok()) << workload.status();
  // A Poisson count of mean 500: sd sqrt(500) = 22.
  EXPECT_NEAR(workload->requests.size(), 500, 3 * 22);
  EXPECT_LT(workload->requests.back().arrival_s, 3600);
}

TEST(SyntheticTraceTest, BurstsAreDenser) {
  const double first_s = 30.049;  // after midnight; arrivals count from here
  size_t in_bursts = 0;
  for (double start_s : {410, 1130, 1490, 2350, 3070}) {
    const WorkloadOptions burst = {.window_start_s = start_s - first_s,
                                   .window_end_s = start_s + 40 - first_s};
    in_bursts += MakeWorkload("synthetic-hour", burst)->requests.size();
  }
  // 0.125/s x 3 x 40 s = 15, times the swell at each burst, 1.34 + 1.45 + 1.24 + 0.58 + 0.61 = 5.2:
  // 78 expected, sd 9. Without bursts it were 26.
  EXPECT_NEAR(in_bursts, 78, 27);
}

}  // namespace
}  // namespace fabricast
