#include "runtime/engine/causal_order.h"

#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Kind = StageReport::Kind;

// "1 started 0": of stage 1, micro-batch 0.
std::string Name(const StageReport& report) {
  static constexpr const char* kNames[] = {"delivered", "started", "computed", "sent"};
  return std::to_string(report.stage) + " " + kNames[static_cast<int>(report.kind)] + " " +
         std::to_string(report.id);
}

StageReport Report(int stage, Kind kind, MicroBatchId id) {
  return {.kind = kind, .stage = stage, .id = id};
}

class Order {
 public:
  explicit Order(int stages) : order_(stages) {}

  // What comes of it.
  std::vector<std::string> Add(int stage, Kind kind, MicroBatchId id) {
    std::vector<StageReport> ordered;
    order_.Add(Report(stage, kind, id), ordered);
    std::vector<std::string> names;
    for (const StageReport& report : ordered) names.push_back(Name(report));
    return names;
  }

  CausalOrder& order() { return order_; }

 private:
  CausalOrder order_;
};

TEST(CausalOrderTest, WhatComesInOrderIsNotHeld) {
  Order order(2);
  EXPECT_THAT(order.Add(0, Kind::kStarted, 0), ElementsAre("0 started 0"));
  EXPECT_THAT(order.Add(0, Kind::kComputed, 0), ElementsAre("0 computed 0"));
  EXPECT_THAT(order.Add(0, Kind::kSendStarted, 0), ElementsAre("0 sent 0"));
  EXPECT_THAT(order.Add(1, Kind::kDelivered, 0), ElementsAre("1 delivered 0"));
  EXPECT_THAT(order.Add(1, Kind::kStarted, 0), ElementsAre("1 started 0"));
  EXPECT_THAT(order.Add(1, Kind::kComputed, 0), ElementsAre("1 computed 0"));
  EXPECT_FALSE(order.order().holds_any());
}

TEST(CausalOrderTest, ADeliveryWaitsForItsSendAndTheStageWithIt) {
  Order order(2);
  EXPECT_THAT(order.Add(1, Kind::kDelivered, 0), IsEmpty());
  EXPECT_THAT(order.Add(1, Kind::kStarted, 0), IsEmpty());
  EXPECT_TRUE(order.order().holds_any());
  EXPECT_THAT(order.Add(0, Kind::kStarted, 0), ElementsAre("0 started 0"));
  EXPECT_THAT(order.Add(0, Kind::kComputed, 0), ElementsAre("0 computed 0"));
  EXPECT_THAT(order.Add(0, Kind::kSendStarted, 0),
              ElementsAre("0 sent 0", "1 delivered 0", "1 started 0"));
  EXPECT_FALSE(order.order().holds_any());
}

TEST(CausalOrderTest, OneSendSetsFreeAChainOfStages) {
  Order order(3);
  EXPECT_THAT(order.Add(2, Kind::kDelivered, 0), IsEmpty());
  EXPECT_THAT(order.Add(2, Kind::kStarted, 0), IsEmpty());
  EXPECT_THAT(order.Add(1, Kind::kDelivered, 0), IsEmpty());
  EXPECT_THAT(order.Add(1, Kind::kSendStarted, 0), IsEmpty());
  EXPECT_THAT(order.Add(1, Kind::kDelivered, 1), IsEmpty());
  EXPECT_THAT(order.Add(0, Kind::kSendStarted, 0),
              ElementsAre("0 sent 0", "1 delivered 0", "1 sent 0", "2 delivered 0", "2 started 0"));
  EXPECT_TRUE(order.order().holds_any());  // the delivery of micro-batch 1
}

TEST(CausalOrderTest, ClearForgetsWhatIsHeldAndWhatWasSent) {
  Order order(2);
  EXPECT_THAT(order.Add(0, Kind::kSendStarted, 0), ElementsAre("0 sent 0"));
  EXPECT_THAT(order.Add(1, Kind::kDelivered, 1), IsEmpty());
  order.order().Clear();
  EXPECT_FALSE(order.order().holds_any());
  // Micro-batch 0 of the next generation.
  EXPECT_THAT(order.Add(1, Kind::kDelivered, 0), IsEmpty());
  EXPECT_THAT(order.Add(0, Kind::kSendStarted, 0), ElementsAre("0 sent 0", "1 delivered 0"));
}

TEST(CausalOrderTest, TokensAndTimesAreCarriedAlong) {
  CausalOrder order(2);
  std::vector<StageReport> ordered;
  order.Add(Report(1, Kind::kDelivered, 0), ordered);
  StageReport computed = Report(1, Kind::kComputed, 0);
  computed.sampled = {{.token = 7, .logprob = 0, .top = {}}};
  computed.at += std::chrono::seconds(3);
  order.Add(std::move(computed), ordered);
  StageReport sent = Report(0, Kind::kSendStarted, 0);
  sent.bytes = 99;
  order.Add(std::move(sent), ordered);
  ASSERT_EQ(ordered.size(), 3u);
  EXPECT_EQ(ordered[0].bytes, 99);
  ASSERT_EQ(ordered[2].sampled.size(), 1u);
  EXPECT_EQ(ordered[2].sampled[0].token, 7);
  EXPECT_EQ(ordered[2].at.time_since_epoch(), std::chrono::seconds(3));
}

// Whatever the interleaving: what has come out is, after each report, the largest part of what has
// come in that can have happened, each stage in its own order.
TEST(CausalOrderTest, AnyInterleavingComesOutInAnOrderThatCanHaveHappenedAndAtOnce) {
  std::mt19937 random(5);
  int64_t held = 0;
  for (int round = 0; round < 400; ++round) {
    const int stages = 1 + static_cast<int>(random() % 5);
    const MicroBatchId count = 1 + static_cast<MicroBatchId>(random() % 6);
    std::vector<std::vector<StageReport>> sequences(stages);
    size_t left = 0;
    for (int s = 0; s < stages; ++s) {
      MicroBatchId delivered = s == 0 ? count : 0;
      for (MicroBatchId id = 0; id < count; ++id) {
        // The next ones may arrive while this one computes.
        const auto deliver = [&](MicroBatchId until) {
          while (delivered < until)
            sequences[s].push_back(Report(s, Kind::kDelivered, delivered++));
        };
        deliver(id + 1);
        sequences[s].push_back(Report(s, Kind::kStarted, id));
        deliver(std::min<MicroBatchId>(count, id + 1 + static_cast<MicroBatchId>(random() % 3)));
        sequences[s].push_back(Report(s, Kind::kComputed, id));
        if (s + 1 < stages) sequences[s].push_back(Report(s, Kind::kSendStarted, id));
      }
      left += sequences[s].size();
    }
    CausalOrder order(stages);
    std::vector<StageReport> ordered;
    std::vector<size_t> in(stages), out(stages);  // of each sequence
    std::vector<MicroBatchId> sent(stages, -1);
    size_t seen = 0;
    for (; left > 0; --left) {
      size_t s = random() % stages;
      while (in[s] == sequences[s].size()) s = (s + 1) % stages;
      order.Add(sequences[s][in[s]++], ordered);
      for (; seen < ordered.size(); ++seen) {
        const StageReport& report = ordered[seen];
        ASSERT_EQ(Name(report), Name(sequences[report.stage][out[report.stage]++]));
        if (report.kind == Kind::kSendStarted) sent[report.stage] = report.id;
        if (report.kind == Kind::kDelivered) {
          ASSERT_LE(report.id, sent[report.stage - 1]);
        }
      }
      size_t inside = 0;
      for (int t = 0; t < stages; ++t) {
        inside += in[t] - out[t];
        if (in[t] == out[t]) continue;
        const StageReport& next = sequences[t][out[t]];
        ASSERT_EQ(next.kind, Kind::kDelivered) << Name(next) << " was held";
        ASSERT_GT(next.id, sent[t - 1]) << Name(next) << " was held";
      }
      ASSERT_EQ(order.holds_any(), inside > 0);
      held += static_cast<int64_t>(inside);
    }
    EXPECT_FALSE(order.holds_any());
  }
  EXPECT_GT(held, 1000);
}

TEST(CausalOrderDeathTest, ReportsAreOfStagesThatThereAre) {
  CausalOrder order(2);
  std::vector<StageReport> ordered;
  EXPECT_DEATH(order.Add(Report(2, Kind::kStarted, 0), ordered), "a report of stage 2 of 2");
  EXPECT_DEATH(order.Add(Report(0, Kind::kDelivered, 4), ordered),
               "micro-batch 4 was delivered to the first stage");
}

}  // namespace
}  // namespace fabricast
