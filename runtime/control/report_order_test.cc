#include "runtime/control/report_order.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;
using Kind = StageReport::Kind;

MicroBatch Sampling(int samples) {
  MicroBatch micro_batch;
  micro_batch.entries.resize(
      samples + 1, {.request = 0, .first_token = 0, .tokens = 1, .decode = true, .samples = true});
  micro_batch.entries.back().samples = false;
  return micro_batch;
}

StageReport Report(int stage, Kind kind, MicroBatchId id, int tokens = 0) {
  StageReport report;
  report.stage = stage;
  report.kind = kind;
  report.id = id;
  report.sampled.resize(tokens);
  return report;
}

TEST(ReportOrderTest, APipelineAtWorkIsInOrder) {
  ReportOrder order(2);
  order.Launched(Sampling(2));
  order.Launched(Sampling(0));
  for (const StageReport& report :
       {Report(1, Kind::kDelivered, 0), Report(0, Kind::kStarted, 0), Report(0, Kind::kComputed, 0),
        Report(0, Kind::kSendStarted, 0), Report(1, Kind::kStarted, 0),
        Report(0, Kind::kStarted, 1), Report(0, Kind::kComputed, 1), Report(1, Kind::kDelivered, 1),
        Report(1, Kind::kComputed, 0, 2), Report(1, Kind::kStarted, 1),
        Report(1, Kind::kComputed, 1, 0), Report(0, Kind::kSendStarted, 1)}) {
    EXPECT_TRUE(order.Take(report).ok()) << report.stage << " " << report.id;
  }
}

TEST(ReportOrderTest, WhatCannotBeIsFoundOut) {
  const struct {
    std::vector<StageReport> before;
    StageReport wrong;
    std::string said;
  } cases[] = {
      {{}, Report(0, Kind::kStarted, 1), "started micro-batch 1, where 0"},
      {{}, Report(0, Kind::kComputed, 0), "computed micro-batch 0"},
      {{}, Report(1, Kind::kStarted, 0), "started micro-batch 0"},
      {{}, Report(0, Kind::kDelivered, 0), "received micro-batch 0"},
      {{Report(1, Kind::kDelivered, 0)}, Report(1, Kind::kDelivered, 1), "received micro-batch 1"},
      {{Report(0, Kind::kStarted, 0)}, Report(0, Kind::kStarted, 0), "started micro-batch 0"},
      {{Report(0, Kind::kStarted, 0)}, Report(0, Kind::kSendStarted, 0), "sent micro-batch 0"},
      {{Report(0, Kind::kStarted, 0)},
       Report(0, Kind::kComputed, 0, 1),
       "brought 1 tokens where 0"},
      {{Report(1, Kind::kDelivered, 0), Report(1, Kind::kStarted, 0)},
       Report(1, Kind::kComputed, 0, 1),
       "brought 1 tokens where 2"},
      {{Report(1, Kind::kDelivered, 0), Report(1, Kind::kStarted, 0),
        Report(1, Kind::kComputed, 0, 2)},
       Report(1, Kind::kSendStarted, 0),
       "sent micro-batch 0"},
  };
  for (const auto& c : cases) {
    ReportOrder order(2);
    order.Launched(Sampling(2));
    for (const StageReport& report : c.before) ASSERT_TRUE(order.Take(report).ok());
    const absl::Status status = order.Take(c.wrong);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.said));
  }
}

TEST(ReportOrderTest, AStageComputesOneMicroBatchAtATime) {
  ReportOrder order(1);
  order.Launched(Sampling(0));
  order.Launched(Sampling(0));
  ASSERT_TRUE(order.Take(Report(0, Kind::kStarted, 0)).ok());
  EXPECT_FALSE(order.Take(Report(0, Kind::kStarted, 1)).ok());
}

}  // namespace
}  // namespace fabricast
