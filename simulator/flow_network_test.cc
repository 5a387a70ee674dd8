#include "simulator/flow_network.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "simulator/isolated.h"

namespace fabricast {
namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();
// trinity_200g's NIC: 200 Gbps less RoCE headers of 82 bytes a 1,024-byte packet.
constexpr double kNic = 25e9 * 1024 / 1106;

// Runs `body` on a fresh network in a child; it returns the times that it wants to be checked.
std::vector<double> OnNetwork(const std::vector<FlowNetwork::Path>& paths,
                              const std::function<void(FlowNetwork&, std::vector<double>&)>& body,
                              const char* cluster = "trinity_200g") {
  const absl::StatusOr<Topology> topology = Topology::Load(cluster);
  EXPECT_TRUE(topology.ok()) << topology.status();
  const IsolatedTask task = [&](std::atomic<double>&) -> absl::StatusOr<std::string> {
    FlowNetwork network(*topology, paths);
    std::vector<double> times;
    body(network, times);
    network.Run();
    std::vector<std::string> texts;
    for (double time : times) texts.push_back(absl::StrFormat("%.17g", time));
    return absl::StrJoin(texts, " ");
  };
  const absl::StatusOr<std::string> text = RunIsolated(absl::MakeConstSpan(&task, 1))[0];
  EXPECT_TRUE(text.ok()) << text.status();
  std::vector<double> times;
  for (absl::string_view part : absl::StrSplit(text.value_or(""), ' ', absl::SkipEmpty())) {
    times.push_back(0);
    EXPECT_TRUE(absl::SimpleAtod(part, &times.back()));
  }
  return times;
}

TEST(FlowNetworkTest, ALoneFlowTakesBytesOverRate) {
  const auto times = OnNetwork({{1, 2, kNoLimit}}, [](FlowNetwork& network, auto& times) {
    network.StartFlow(1, 2, 1e9, [&] { times.push_back(network.now()); });
  });
  ASSERT_EQ(times.size(), 1u);
  EXPECT_NEAR(times[0], 1e9 / kNic, 1e-9);
}

TEST(FlowNetworkTest, TwoFlowsOverOneNicShareItEvenly) {
  // Both leave node_a by its NIC: 1 GB each at half the rate.
  const auto times =
      OnNetwork({{0, 2, kNoLimit}, {1, 2, kNoLimit}}, [](FlowNetwork& network, auto& times) {
        network.StartFlow(0, 2, 1e9, [&] { times.push_back(network.now()); });
        network.StartFlow(1, 2, 1e9, [&] { times.push_back(network.now()); });
      });
  ASSERT_EQ(times.size(), 2u);
  EXPECT_NEAR(times[0], 2e9 / kNic, 1e-8);
  EXPECT_NEAR(times[1], 2e9 / kNic, 1e-8);
}

TEST(FlowNetworkTest, AFlowSpeedsUpWhenTheOtherEnds) {
  // 1 GB beside 0.5 GB: both at half the rate until 1 GB have passed, then the rest alone: 1.5 GB
  // in all.
  const auto times =
      OnNetwork({{0, 2, kNoLimit}, {1, 2, kNoLimit}}, [](FlowNetwork& network, auto& times) {
        network.StartFlow(0, 2, 1e9, [&] { times.push_back(network.now()); });
        network.StartFlow(1, 2, 0.5e9, [&] { times.push_back(network.now()); });
      });
  ASSERT_EQ(times.size(), 2u);
  EXPECT_NEAR(times[0], 1e9 / kNic, 1e-8);
  EXPECT_NEAR(times[1], 1.5e9 / kNic, 1e-8);
}

TEST(FlowNetworkTest, OppositeDirectionsDoNotShare) {
  const auto times =
      OnNetwork({{1, 2, kNoLimit}, {2, 1, kNoLimit}}, [](FlowNetwork& network, auto& times) {
        network.StartFlow(1, 2, 1e9, [&] { times.push_back(network.now()); });
        network.StartFlow(2, 1, 1e9, [&] { times.push_back(network.now()); });
      });
  ASSERT_EQ(times.size(), 2u);
  EXPECT_NEAR(times[1], 1e9 / kNic, 1e-8);
}

TEST(FlowNetworkTest, AStreamsOwnLimitHoldsBelowTheWire) {
  const auto times = OnNetwork({{1, 2, 5e9}}, [](FlowNetwork& network, auto& times) {
    network.StartFlow(1, 2, 1e9, [&] { times.push_back(network.now()); });
  });
  ASSERT_EQ(times.size(), 1u);
  EXPECT_NEAR(times[0], 0.2, 1e-9);
}

TEST(FlowNetworkTest, TimersFireInOrderAndMayStartFlowsAndTimers) {
  const auto times = OnNetwork({{1, 2, 1e9}}, [](FlowNetwork& network, auto& times) {
    network.After(2, [&] { times.push_back(network.now()); });
    network.After(1, [&] {
      times.push_back(network.now());
      network.StartFlow(1, 2, 0.5e9, [&] {
        times.push_back(network.now());
        // From within a completion: another flow, and one of no bytes.
        network.StartFlow(1, 2, 1e9, [&] { times.push_back(network.now()); });
        network.StartFlow(1, 2, 0, [&] { times.push_back(network.now()); });
      });
    });
  });
  ASSERT_EQ(times.size(), 5u);
  EXPECT_NEAR(times[0], 1, 1e-9);
  EXPECT_NEAR(times[1], 1.5, 1e-9);
  EXPECT_NEAR(times[2], 1.5, 1e-9);
  EXPECT_NEAR(times[3], 2, 1e-9);
  EXPECT_NEAR(times[4], 2.5, 1e-9);
}

TEST(FlowNetworkTest, ThousandsOfFlowsOneAfterTheOtherReuseTheirMemory) {
  const auto times = OnNetwork({{1, 2, 1e9}}, [](FlowNetwork& network, auto& times) {
    auto left = std::make_shared<int>(5000);
    auto again = std::make_shared<std::function<void()>>();
    *again = [&network, &times, left, again] {
      if (--*left == 0) {
        times.push_back(network.now());
        return;
      }
      network.After(1e-3, [&network, again] { network.StartFlow(1, 2, 1e6, *again); });
    };
    network.StartFlow(1, 2, 1e6, *again);
  });
  ASSERT_EQ(times.size(), 1u);
  // 5,000 flows of 1 ms and 4,999 pauses of 1 ms.
  EXPECT_NEAR(times[0], 9.999, 1e-4);
}

}  // namespace
}  // namespace fabricast
