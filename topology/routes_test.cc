// Routes through the bundled clusters: which way, over what, how fast.
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "topology/topology.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Topology LoadOrDie(const std::string& name, const std::vector<Override>& overrides = {}) {
  absl::StatusOr<Topology> topology = Topology::Load(name, overrides);
  if (!topology.ok()) ADD_FAILURE() << topology.status();
  return *std::move(topology);
}

std::vector<std::string> SegmentNames(const Topology& topology, const Route& route) {
  std::vector<std::string> names;
  for (const int segment : route.segments) names.push_back(topology.segments()[segment].name);
  return names;
}

std::string BottleneckName(const Topology& topology, const Route& route) {
  return topology.segments()[route.bottleneck].name;
}

double GigabytesPerSecond(const Route& route) { return route.payload_bytes_per_s / 1e9; }

TEST(Trinity200Test, BetweenHostsTheNicLimitsAtTheRateThatThePaperMeasured) {
  const Topology topology = LoadOrDie("trinity_200g");
  const Route& route = topology.route(0, 2);
  EXPECT_EQ(route.kind, PATH_KIND_NETWORK_RDMA);
  EXPECT_THAT(SegmentNames(topology, route),
              ElementsAre("node_a.gpu0 pcie up", "node_a.nic0 pcie down", "node_a.nic0 tx",
                          "node_b.nic0 rx", "node_b.nic0 pcie up", "node_b.gpu0 pcie down"));
  EXPECT_EQ(BottleneckName(topology, route), "node_a.nic0 tx");
  // 200 Gbps = 25 GB/s; packets of 1024 bytes cost 1106 on the wire: 25 x 1024 / 1106 = 23.146.
  EXPECT_NEAR(GigabytesPerSecond(route), 23.146, 0.001);
  EXPECT_EQ(topology.segments()[route.bottleneck].line_bytes_per_s, 25e9);
  // PCIe 4 x16: 16e9 x 128/130 x 16 / 8 = 31.5 GB/s raw, x 256/280 = 28.8 for payload: above the
  // NIC.
  EXPECT_NEAR(topology.segments()[route.segments[1]].payload_bytes_per_s / 1e9, 28.807, 0.001);
  // NICs 0.7 us each, switch 1 us.
  EXPECT_NEAR(route.latency_s, 2.4e-6, 1e-12);
  EXPECT_EQ(topology.network_rate_gbps(), 200);
  EXPECT_EQ(topology.network_mtu_bytes(), 1024);
}

TEST(Trinity200Test, InsideTheHostGpusTalkOverPcie) {
  const Topology topology = LoadOrDie("trinity_200g");
  const Route& route = topology.route(0, 1);
  EXPECT_EQ(route.kind, PATH_KIND_PCIE_PEER);
  EXPECT_THAT(SegmentNames(topology, route),
              ElementsAre("node_a.gpu0 pcie up", "node_a.gpu1 pcie down"));
  // PCIe 5 x16: 32e9 x 128/130 x 16 / 8 x 256/280 = 57.6 GB/s; 53 to 56.6 were measured.
  EXPECT_NEAR(GigabytesPerSecond(route), 57.61, 0.01);
  EXPECT_TRUE(route.gpudirect);
  EXPECT_THAT(route.gpudirect_reason, IsEmpty());
  EXPECT_EQ(route.sender_distance, PCIE_DISTANCE_UNSPECIFIED);
}

TEST(Trinity400Test, TwiceTheRateGivesTwiceThePayload) {
  const Topology topology = LoadOrDie("trinity_400g");
  const Route& route = topology.route(0, 2);
  // 50 x 1024 / 1106 = 46.293: ConnectX-7 in PCIe 5 x16 (57.6) is not in the way.
  EXPECT_NEAR(GigabytesPerSecond(route), 46.293, 0.001);
  EXPECT_EQ(BottleneckName(topology, route), "node_a.nic0 tx");
}

TEST(Trinity200Test, AConnectX6ForcedTo400GbpsIsBoundByItsPcie4) {
  const Topology topology =
      LoadOrDie("trinity_200g", {{.path = "*.nic0.rate_gbps", .value = "400"}});
  const Route& route = topology.route(0, 2);
  // min(46.3, 28.8): PCIe 4 x16.
  EXPECT_NEAR(GigabytesPerSecond(route), 28.807, 0.001);
  EXPECT_EQ(BottleneckName(topology, route), "node_a.nic0 pcie down");
  EXPECT_EQ(topology.segments()[route.bottleneck].limit, "PCIe 4.0 x16");
  ASSERT_EQ(topology.warnings().size(), 2u);
  // 28.806 GB/s x 8 = 230 Gbps.
  EXPECT_THAT(topology.warnings()[0], HasSubstr("trinity_200g: node_a.nic0: PCIe 4.0 x16"));
  EXPECT_THAT(topology.warnings()[0], HasSubstr("carries 230 of its 400 Gbps"));
}

TEST(Trinity200Test, BothDirectionsUseDifferentSegments) {
  const Topology topology = LoadOrDie("trinity_200g");
  const Route& there = topology.route(0, 2);
  const Route& back = topology.route(2, 0);
  EXPECT_EQ(there.segments.size(), back.segments.size());
  for (const int segment : there.segments) {
    EXPECT_THAT(back.segments, ::testing::Not(::testing::Contains(segment)));
  }
}

TEST(Trinity200Test, WithNetworkRateChangesNicsAndPortsButNotPcie) {
  const Topology at_200 = LoadOrDie("trinity_200g");
  const Topology at_100 = at_200.WithNetworkRate(100);
  EXPECT_EQ(at_100.network_rate_gbps(), 100);
  // 12.5 x 1024 / 1106.
  EXPECT_NEAR(GigabytesPerSecond(at_100.route(0, 2)), 11.573, 0.001);
  EXPECT_EQ(at_100.cluster().hosts(0).nics(0).override().rate_gbps(), 100);
  // 800 Gbps is beyond the ports of the switch, which are lifted too; PCIe 4 x16 is not.
  const Topology at_800 = at_200.WithNetworkRate(800);
  EXPECT_EQ(at_800.network_rate_gbps(), 800);
  EXPECT_NEAR(GigabytesPerSecond(at_800.route(0, 2)), 28.807, 0.001);
  // The original is as it was.
  EXPECT_EQ(at_200.network_rate_gbps(), 200);
}

TEST(GpudirectTest, AGpuFartherFromTheNicThanTheLevelAllowsSaysWhatToSet) {
  const Topology topology =
      LoadOrDie("trinity_200g", {{.path = "communication.gdr_level", .value = "PXB"}});
  const Route& route = topology.route(0, 2);
  EXPECT_FALSE(route.gpudirect);
  EXPECT_EQ(route.gpudirect_reason,
            "node_a.gpu0 and node_a.nic0 are PHB apart, gdr_level is PXB: set "
            "NCCL_NET_GDR_LEVEL=PHB");
  EXPECT_EQ(route.sender_distance, PCIE_DISTANCE_PHB);
  EXPECT_EQ(route.receiver_distance, PCIE_DISTANCE_PHB);
}

TEST(GpudirectTest, WithoutItBytesAreStagedInHostMemoryOnBothSides) {
  const Topology topology =
      LoadOrDie("trinity_200g", {{.path = "communication.gpudirect", .value = "false"}});
  const Route& route = topology.route(0, 2);
  EXPECT_FALSE(route.gpudirect);
  EXPECT_THAT(SegmentNames(topology, route),
              ElementsAre("node_a.gpu0 pcie up", "node_a memory", "node_a.nic0 staging out",
                          "node_a.nic0 pcie down", "node_a.nic0 tx", "node_b.nic0 rx",
                          "node_b.nic0 pcie up", "node_b memory", "node_b.nic0 staging in",
                          "node_b.gpu0 pcie down"));
  // The copies are the limit, at the calibrated rate.
  EXPECT_EQ(BottleneckName(topology, route), "node_a.nic0 staging out");
  EXPECT_DOUBLE_EQ(route.payload_bytes_per_s, topology.nccl().host_staging_gb_s() * 1e9);
  // Memory of 332.8 GB/s is written and read: 166.4.
  EXPECT_DOUBLE_EQ(topology.segments()[route.segments[1]].payload_bytes_per_s, 166.4e9);
  // Two more traversals of PCIe of 0.45 us each: 2.4 + 0.9.
  EXPECT_NEAR(route.latency_s, 3.3e-6, 1e-12);
}

struct GpudirectCase {
  std::string path;
  std::string value;
  std::string reason;
};

TEST(GpudirectTest, EveryReasonNamesTheObjectAndTheMend) {
  const std::vector<GpudirectCase> cases = {
      {"communication.transport", "TCP", "set communication.transport to TRANSPORT_NCCL_RDMA"},
      {"communication.gpudirect", "false", "communication.gpudirect is false"},
      {"node_b.gpudirect_driver", "false", "node_b has no GPUDirect driver: load nvidia_peermem"},
      {"node_b.gpu0.gpudirect_rdma", "false",
       "node_b.gpu0 (rtx_pro_6000_blackwell_max_q) does not support GPUDirect RDMA"},
      {"node_a.nic0.rdma", "false", "node_a.nic0 (connectx6_200g) has no RDMA"},
      {"communication.gdr_level", "LOC", "gdr_level is LOC: set NCCL_NET_GDR_LEVEL=PHB"},
      {"communication.gdr_level", "PCIE_DISTANCE_PIX", "gdr_level is PIX"},
  };
  for (const GpudirectCase& c : cases) {
    SCOPED_TRACE(absl::StrCat(c.path, "=", c.value));
    const Topology topology = LoadOrDie("trinity_200g", {{.path = c.path, .value = c.value}});
    const Route& route = topology.route(0, 2);
    EXPECT_FALSE(route.gpudirect);
    EXPECT_THAT(route.gpudirect_reason, HasSubstr(c.reason));
  }
  EXPECT_TRUE(LoadOrDie("trinity_200g").route(0, 2).gpudirect);
  EXPECT_TRUE(LoadOrDie("trinity_200g", {{.path = "communication.gdr_level", .value = "PHB"}})
                  .route(0, 2)
                  .gpudirect);
}

TEST(TcpTest, JumboFramesGiveThe198GbpsThatThePaperMeasured) {
  const Topology topology =
      LoadOrDie("trinity_200g", {{.path = "communication.transport", .value = "TCP"}});
  const Route& route = topology.route(0, 2);
  EXPECT_EQ(route.kind, PATH_KIND_NETWORK_TCP);
  EXPECT_EQ(BottleneckName(topology, route), "node_a.nic0 tx");
  // 200 x 8948 / 9038 = 198.0 Gbps.
  EXPECT_NEAR(GigabytesPerSecond(route) * 8, 198.0, 0.05);
  EXPECT_EQ(topology.network_mtu_bytes(), 9000);
  EXPECT_THAT(SegmentNames(topology, route), ::testing::Contains("node_a memory"));
}

TEST(NvlinkTest, GpusOfOneDomainUseNvlink) {
  const Topology topology = LoadOrDie("h200_x4");
  ASSERT_EQ(topology.gpus().size(), 4u);
  const Route& route = topology.route(1, 3);
  EXPECT_EQ(route.kind, PATH_KIND_NVLINK);
  EXPECT_THAT(SegmentNames(topology, route),
              ElementsAre("node_a.gpu1 nvlink out", "node_a.gpu3 nvlink in"));
  // 450 GB/s nominal; a peer copy was measured at 348.
  EXPECT_NEAR(GigabytesPerSecond(route), 348, 0.001);
  EXPECT_EQ(topology.network_rate_gbps(), 0);
}

TEST(PcieServerTest, OnlyWhatIsReallyCrossedIsOnTheRoute) {
  const Topology topology = LoadOrDie("rtx_pro_6000_x8");
  // Below one PCIe switch.
  EXPECT_THAT(SegmentNames(topology, topology.route(0, 1)),
              ElementsAre("node_a.gpu0 pcie up", "node_a.gpu1 pcie down"));
  // Two switches of one processor.
  EXPECT_THAT(SegmentNames(topology, topology.route(0, 2)),
              ElementsAre("node_a.gpu0 pcie up", "node_a.switch0 pcie up",
                          "node_a.switch1 pcie down", "node_a.gpu2 pcie down"));
  // Two processors.
  EXPECT_THAT(SegmentNames(topology, topology.route(6, 1)),
              ElementsAre("node_a.gpu6 pcie up", "node_a.switch3 pcie up", "node_a.rc1->rc0",
                          "node_a.switch0 pcie down", "node_a.gpu1 pcie down"));
  EXPECT_EQ(BottleneckName(topology, topology.route(6, 1)), "node_a.rc1->rc0");
}

TEST(PcieServerTest, WithoutPeerAccessBytesGoThroughHostMemory) {
  const Topology topology =
      LoadOrDie("rtx_pro_6000_x8", {{.path = "node_a.gpu1.pcie_peer_to_peer", .value = "false"}});
  const Route& route = topology.route(0, 1);
  EXPECT_EQ(route.kind, PATH_KIND_HOST_MEMORY);
  EXPECT_THAT(SegmentNames(topology, route),
              ElementsAre("node_a.gpu0 pcie up", "node_a.switch0 pcie up", "node_a memory",
                          "node_a.switch0 pcie down", "node_a.gpu1 pcie down"));
  EXPECT_EQ(topology.route(2, 3).kind, PATH_KIND_PCIE_PEER);
}

TEST(LeafSpineTest, GpuIUsesNicIAndStaysOnItsRail) {
  const Topology topology = LoadOrDie("leaf_spine_16");
  ASSERT_EQ(topology.gpus().size(), 128u);
  for (int i = 0; i < 8; ++i) {
    const Route& route = topology.route(i, 8 + i);  // node0.gpu<i> to node1.gpu<i>
    EXPECT_THAT(
        SegmentNames(topology, route),
        ElementsAre(absl::StrCat("node0.gpu", i, " pcie up"),
                    absl::StrCat("node0.nic", i, " pcie down"), absl::StrCat("node0.nic", i, " tx"),
                    absl::StrCat("node1.nic", i, " rx"), absl::StrCat("node1.nic", i, " pcie up"),
                    absl::StrCat("node1.gpu", i, " pcie down")));
    EXPECT_EQ(route.sender_distance, PCIE_DISTANCE_PIX);
    EXPECT_TRUE(route.gpudirect) << route.gpudirect_reason;
    // 50 x 4096 / 4178.
    EXPECT_NEAR(GigabytesPerSecond(route), 49.019, 0.001);
    // Two NICs and one leaf.
    EXPECT_NEAR(route.latency_s, 1.825e-6, 1e-12);
  }
}

TEST(LeafSpineTest, BetweenRailsFlowsSpreadOverSpinesAndCables) {
  const Topology topology = LoadOrDie("leaf_spine_16");
  std::map<std::string, int> flows_on;
  // Every node's gpu0 to every other node's gpu1: leaf0, a spine, leaf1.
  for (int a = 0; a < 16; ++a) {
    for (int b = 0; b < 16; ++b) {
      if (a == b) continue;
      const Route& route = topology.route(a * 8, b * 8 + 1);
      // Two NICs and three switches of 425 ns.
      EXPECT_NEAR(route.latency_s, 2.675e-6, 1e-12);
      for (const std::string& name : SegmentNames(topology, route)) {
        if (absl::StartsWith(name, "leaf0.")) ++flows_on[name];
      }
    }
  }
  // 240 flows over the 16 cables that leave leaf0 upwards: 15 each if spread evenly; a hash leaves
  // none empty and none with more than twice its share.
  EXPECT_EQ(flows_on.size(), 16u);
  for (const auto& [name, flows] : flows_on) {
    EXPECT_GE(flows, 5) << name;
    EXPECT_LE(flows, 30) << name;
  }
}

TEST(LeafSpineTest, RoutesAreEquallyLongBothWays) {
  const Topology topology = LoadOrDie("leaf_spine_16");
  for (int from = 0; from < 128; from += 5) {
    for (int to = 0; to < 128; ++to) {
      if (from == to) continue;
      EXPECT_EQ(topology.route(from, to).segments.size(), topology.route(to, from).segments.size());
      EXPECT_DOUBLE_EQ(topology.route(from, to).latency_s, topology.route(to, from).latency_s);
    }
  }
}

TEST(LeafSpineTest, TheSameInputGivesTheSameRoutes) {
  const Topology first = LoadOrDie("leaf_spine_16");
  const Topology second = LoadOrDie("leaf_spine_16");
  for (int to = 1; to < 128; ++to) {
    EXPECT_EQ(first.route(0, to).segments, second.route(0, to).segments);
  }
}

TEST(LeafSpineTest, LoadsWithAllItsRoutesInAFractionOfASecond) {
  const absl::Time start = absl::Now();
  const Topology topology = LoadOrDie("leaf_spine_16");
  for (int from = 0; from < 128; ++from) topology.route(from, (from + 1) % 128);
  // 128 x 127 routes: 11 ms optimised; the bound leaves room for sanitizers on a busy machine.
  EXPECT_LT(absl::Now() - start, absl::Seconds(3));
}

TEST(LeafSpineTest, ThreadsMayAskForRoutesAtOnce) {
  const Topology topology = LoadOrDie("leaf_spine_16");
  std::vector<std::thread> threads;
  std::vector<double> sums(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&topology, &sums, t] {
      for (int from = 0; from < 32; ++from) {
        for (int to = 0; to < 128; ++to) {
          if (from != to) sums[t] += topology.route(from, to).payload_bytes_per_s;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const double sum : sums) EXPECT_EQ(sum, sums[0]);
}

TEST(TopologyTest, RoutesOutliveTheTopologyTheyWereAskedFromIfACopyLives) {
  auto first = std::make_unique<Topology>(LoadOrDie("trinity_200g"));
  const Topology copy = *first;
  const Route& route = first->route(0, 2);
  first.reset();
  EXPECT_EQ(&route, &copy.route(0, 2));
}

TEST(TopologyDeathTest, ARouteFromAGpuToItselfIsABug) {
  const Topology topology = LoadOrDie("trinity_200g");
  EXPECT_DEATH(topology.route(1, 1), "route\\(1, 1\\): there are 3 GPUs");
  EXPECT_DEATH(topology.route(0, 3), "route\\(0, 3\\): there are 3 GPUs");
}

}  // namespace
}  // namespace fabricast
