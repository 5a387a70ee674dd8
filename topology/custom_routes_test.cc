// Routes through small clusters that each show one rule.
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "topology/topology.h"

namespace fabricast {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

Topology ParseOrDie(const std::string& text, const SpecLibrary& specs = SpecLibrary::Bundled()) {
  absl::StatusOr<Topology> topology =
      Topology::Parse("c.txtpb", absl::StrCat("name: \"c\" ", text), {}, specs);
  if (!topology.ok()) ADD_FAILURE() << topology.status();
  return *std::move(topology);
}

std::vector<std::string> SegmentNames(const Topology& topology, int from, int to) {
  std::vector<std::string> names;
  for (const int segment : topology.route(from, to).segments) {
    names.push_back(topology.segments()[segment].name);
  }
  return names;
}

const Segment& Bottleneck(const Topology& topology, int from, int to) {
  return topology.segments()[topology.route(from, to).bottleneck];
}

// A host with one GPU and one NIC of 400 Gbps.
std::string OneGpuHost(const std::string& name) {
  return absl::StrCat("hosts { name: \"", name,
                      "\" spec: \"trinity_host_a\" "
                      "gpus { name: \"gpu0\" spec: \"h200_sxm\" slot: \"slot1\" } "
                      "nics { name: \"nic0\" spec: \"connectx7_400g\" slot: \"slot2\" } } ");
}
constexpr char kRaisedLevel[] = "communication { gdr_level: PCIE_DISTANCE_PHB } ";

TEST(CableTest, FromNicToNicNeedsNoSwitch) {
  const Topology topology =
      ParseOrDie(absl::StrCat(OneGpuHost("a"), OneGpuHost("b"), kRaisedLevel,
                              "links { a: \"b.nic0\" b: \"a.nic0\" latency_ns: 25 }"));
  EXPECT_THAT(SegmentNames(topology, 0, 1),
              ElementsAre("a.gpu0 pcie up", "a.nic0 pcie down", "a.nic0 tx", "b.nic0 pcie up",
                          "b.gpu0 pcie down"));
  EXPECT_THAT(SegmentNames(topology, 1, 0), Contains("b.nic0 tx"));
  // Two NICs of 0.7 us and 25 ns of cable.
  EXPECT_NEAR(topology.route(0, 1).latency_s, 1.425e-6, 1e-12);
  EXPECT_EQ(Bottleneck(topology, 0, 1).limit, "400 Gbps of a.nic0");
}

TEST(CableTest, RunsAtTheLeastOfBothEndsAndItself) {
  const std::string hosts =
      absl::StrCat(OneGpuHost("a"), OneGpuHost("b"), kRaisedLevel,
                   "switches { name: \"sw\" spec: \"mikrotik_crs812\" } links { a: \"a.nic0\" b: "
                   "\"sw.qsfpdd1\" } ");
  // The switch's port: sfp ports have 50 Gbps; 6.25 x 4096 / 4178.
  const Topology slow_port = ParseOrDie(hosts + "links { a: \"b.nic0\" b: \"sw.sfp1\" }");
  EXPECT_NEAR(slow_port.route(0, 1).payload_bytes_per_s / 1e9, 6.127, 0.001);
  EXPECT_EQ(Bottleneck(slow_port, 0, 1).name, "b.nic0 rx");
  EXPECT_EQ(Bottleneck(slow_port, 0, 1).limit, "50 Gbps of sw.sfp1");
  EXPECT_EQ(slow_port.network_rate_gbps(), 50);
  // The cable itself.
  const Topology slow_cable =
      ParseOrDie(hosts + "links { a: \"b.nic0\" b: \"sw.qsfpdd2\" rate_gbps: 100 }");
  EXPECT_NEAR(slow_cable.route(1, 0).payload_bytes_per_s / 1e9, 12.255, 0.001);
  EXPECT_EQ(Bottleneck(slow_cable, 1, 0).name, "b.nic0 tx");
  EXPECT_EQ(Bottleneck(slow_cable, 1, 0).limit, "100 Gbps of link b.nic0--sw.qsfpdd2");
}

TEST(SwitchTest, ItsCapacityCountsOnlyWhereItsPortsExceedIt) {
  const std::string text = absl::StrCat(
      OneGpuHost("a"), OneGpuHost("b"), kRaisedLevel,
      "links { a: \"a.nic0\" b: \"sw.port1\" } links { a: \"b.nic0\" b: \"sw.port2\" } "
      "switches { name: \"sw\" spec: \"leaf_400g\" override { capacity_gbps: ");
  // 2 x 400 are cabled.
  EXPECT_THAT(SegmentNames(ParseOrDie(text + "800 } }"), 0, 1), Not(Contains("sw fabric")));
  const Topology narrow = ParseOrDie(text + "300 } }");
  EXPECT_EQ(Bottleneck(narrow, 0, 1).name, "sw fabric");
  // 37.5 x 4096 / 4178.
  EXPECT_NEAR(narrow.route(0, 1).payload_bytes_per_s / 1e9, 36.764, 0.001);
  // It stays as narrow for its ports: 150 of 2 x 200, 18.75 x 4096 / 4178. 600 of 2 x 800 is more
  // than PCIe carries.
  EXPECT_NEAR(narrow.WithNetworkRate(200).route(0, 1).payload_bytes_per_s / 1e9, 18.382, 0.001);
  EXPECT_EQ(Bottleneck(narrow.WithNetworkRate(800), 0, 1).name, "a.gpu0 pcie up");
}

TEST(SwitchTest, TheShortestOfSeveralWaysIsTaken) {
  // a - s0 - s1 - b, and a detour s0 - s2 - s1.
  const Topology topology = ParseOrDie(absl::StrCat(
      OneGpuHost("a"), OneGpuHost("b"), kRaisedLevel,
      "switches { name: \"s0\" spec: \"leaf_400g\" } switches { name: \"s1\" spec: \"leaf_400g\" } "
      "switches { name: \"s2\" spec: \"leaf_400g\" } links { a: \"a.nic0\" b: \"s0.port1\" } "
      "links { a: \"s1.port1\" b: \"b.nic0\" } links { a: \"s2.port1\" b: \"s0.port2\" } "
      "links { a: \"s2.port2\" b: \"s1.port2\" } links { a: \"s1.port3\" b: \"s0.port3\" }"));
  EXPECT_THAT(SegmentNames(topology, 0, 1),
              ElementsAre("a.gpu0 pcie up", "a.nic0 pcie down", "a.nic0 tx", "s0.port3 out",
                          "b.nic0 rx", "b.nic0 pcie up", "b.gpu0 pcie down"));
  // Cables between switches keep their rate.
  EXPECT_EQ(Bottleneck(topology.WithNetworkRate(800), 0, 1).name, "s0.port3 out");
}

// One host of eight GPUs behind two processors; `nics` are its NICs. A second host to talk to.
Topology Server(const std::string& nics, const std::string& links) {
  return ParseOrDie(absl::StrCat(
      "hosts { name: \"a\" spec: \"pcie_8gpu_server\" "
      "gpus { name: \"gpu0\" spec: \"l40s\" slot: \"gpu0\" } "
      "gpus { name: \"gpu1\" spec: \"l40s\" slot: \"gpu1\" } "
      "gpus { name: \"gpu2\" spec: \"l40s\" slot: \"gpu2\" } "
      "gpus { name: \"gpu3\" spec: \"l40s\" slot: \"gpu7\" } ",
      nics, "} ", OneGpuHost("b"), "switches { name: \"sw\" spec: \"leaf_400g\" } ", links,
      "links { a: \"b.nic0\" b: \"sw.port32\" } communication { gdr_level: PCIE_DISTANCE_SYS } "));
}

std::string NicOf(const std::string& name, const std::string& slot) {
  return absl::StrCat("nics { name: \"", name, "\" spec: \"connectx6_200g\" slot: \"", slot,
                      "\" } ");
}

TEST(NicChoiceTest, TheNearestByPcieIsUsed) {
  const Topology topology =
      Server(NicOf("far", "nic3") + NicOf("near", "nic0"),
             "links { a: \"a.far\" b: \"sw.port1\" } links { a: \"a.near\" b: \"sw.port2\" } ");
  EXPECT_THAT(SegmentNames(topology, 0, 4), Contains("a.near tx"));
  EXPECT_EQ(topology.route(0, 4).sender_distance, PCIE_DISTANCE_PIX);
  // gpu2 is below another PCIe switch of the same processor, gpu3 below that of nic3.
  EXPECT_THAT(SegmentNames(topology, 2, 4), Contains("a.near tx"));
  EXPECT_EQ(topology.route(2, 4).sender_distance, PCIE_DISTANCE_PHB);
  EXPECT_THAT(SegmentNames(topology, 3, 4), Contains("a.far tx"));
  EXPECT_EQ(topology.route(4, 3).receiver_distance, PCIE_DISTANCE_PIX);
  EXPECT_THAT(SegmentNames(topology, 4, 3), Contains("a.far rx"));
}

TEST(NicChoiceTest, ANicWithoutACableIsNotUsed) {
  const Topology topology = Server(NicOf("far", "nic3") + NicOf("near", "nic0"),
                                   "links { a: \"a.far\" b: \"sw.port1\" } ");
  EXPECT_THAT(SegmentNames(topology, 0, 4),
              ElementsAre("a.gpu0 pcie up", "a.switch0 pcie up", "a.rc0->rc1",
                          "a.switch3 pcie down", "a.far pcie down", "a.far tx", "b.nic0 rx",
                          "b.nic0 pcie up", "b.gpu0 pcie down"));
  EXPECT_EQ(topology.route(0, 4).sender_distance, PCIE_DISTANCE_SYS);
}

TEST(NicChoiceTest, EquallyNearNicsAreSharedByTheGpusInTurn) {
  // Both NICs are PHB apart from gpu2 and gpu3's siblings; trinity_host_a has one root complex.
  std::string text =
      "switches { name: \"sw\" spec: \"leaf_400g\" } communication { gdr_level: "
      "PCIE_DISTANCE_PHB } hosts { name: \"a\" spec: \"trinity_host_a\" ";
  for (int i = 0; i < 4; ++i) {
    absl::StrAppend(&text, "gpus { name: \"gpu", i, "\" spec: \"l40s\" slot: \"slot", i + 1,
                    "\" } ");
  }
  absl::StrAppend(&text, NicOf("nic0", "slot5"), NicOf("nic1", "slot6"), "} ", OneGpuHost("b"),
                  "links { a: \"a.nic0\" b: \"sw.port1\" } links { a: \"a.nic1\" b: "
                  "\"sw.port2\" } links { a: \"b.nic0\" b: \"sw.port3\" }");
  const Topology topology = ParseOrDie(text);
  for (int i = 0; i < 4; ++i) {
    EXPECT_THAT(SegmentNames(topology, i, 4), Contains(absl::StrCat("a.nic", i % 2, " tx"))) << i;
    EXPECT_THAT(SegmentNames(topology, 4, i), Contains(absl::StrCat("a.nic", i % 2, " rx"))) << i;
  }
}

TEST(NicChoiceTest, OfEquallyNearNicsAGpuTakesTheOneWithItsOwnNumber) {
  // gpu1, nic1 and nic2 are below one PCIe switch: the second of the two near ones is not gpu1's.
  const Topology topology = ParseOrDie(absl::StrCat(
      "hosts { name: \"a\" spec: \"hgx_sxm\" "
      "gpus { name: \"gpu0\" spec: \"h200_sxm\" slot: \"gpu0\" } "
      "gpus { name: \"gpu1\" spec: \"h200_sxm\" slot: \"gpu2\" } ",
      NicOf("nic0", "nic0"), NicOf("nic1", "nic2"), NicOf("nic2", "nic3"), "} ", OneGpuHost("b"),
      "switches { name: \"sw\" spec: \"leaf_400g\" } "
      "links { a: \"a.nic0\" b: \"sw.port1\" } links { a: \"a.nic1\" b: \"sw.port2\" } "
      "links { a: \"a.nic2\" b: \"sw.port3\" } links { a: \"b.nic0\" b: \"sw.port4\" }"));
  EXPECT_THAT(SegmentNames(topology, 1, 2), Contains("a.nic1 tx"));
  EXPECT_THAT(SegmentNames(topology, 2, 1), Contains("a.nic1 rx"));
}

TEST(NicChoiceTest, RailsThatDoNotMeetAreUsedEachForItself) {
  // nic0s on one switch, nic1s on another; no cable between the two.
  std::string text =
      "switches { name: \"rail0\" spec: \"leaf_400g\" } switches { name: \"rail1\" spec: "
      "\"leaf_400g\" } ";
  for (const char* host : {"a", "b"}) {
    absl::StrAppend(&text, "hosts { name: \"", host, "\" spec: \"hgx_sxm\" ");
    for (const int i : {0, 1}) {
      absl::StrAppend(&text, "gpus { name: \"gpu", i, "\" spec: \"h200_sxm\" slot: \"gpu", i,
                      "\" } ", NicOf(absl::StrCat("nic", i), absl::StrCat("nic", i)));
    }
    absl::StrAppend(&text, "} ");
    for (const int i : {0, 1}) {
      absl::StrAppend(&text, "links { a: \"", host, ".nic", i, "\" b: \"rail", i, ".port",
                      host[0] - 'a' + 1, "\" } ");
    }
  }
  const Topology topology = ParseOrDie(text);
  EXPECT_THAT(SegmentNames(topology, 0, 2), Contains("a.nic0 tx"));
  EXPECT_THAT(SegmentNames(topology, 1, 3), Contains("a.nic1 tx"));
  // From gpu0 to the other host's gpu1 there is no way but within a rail: one side leaves its own.
  const std::vector<std::string> names = SegmentNames(topology, 0, 3);
  EXPECT_THAT(names, ElementsAre("a.gpu0 pcie up", "a.nic0 pcie down", "a.nic0 tx", "b.nic0 rx",
                                 "b.nic0 pcie up", "b.gpu1 pcie down"));
}

TEST(RootComplexTest, PeerTrafficOfOneDirectionSharesItsCapacity) {
  SpecLibrary specs = SpecLibrary::Bundled();
  const absl::Status status = specs.AddText("weak.txtpb", R"(# proto-message: fabricast.HostSpec
    name: "weak"
    root_complexes { name: "rc0" peer_gb_s: 20 }
    slots { name: "s0" upstream: "rc0" generation: 5 lanes: 16 }
    slots { name: "s1" upstream: "rc0" generation: 5 lanes: 16 }
    memory_bandwidth_gb_s: 100
    sources { fields: ["peer_gb_s", "generation", "lanes", "memory_bandwidth_gb_s"]
              reference: "test" }
  )");
  ASSERT_TRUE(status.ok()) << status;
  const Topology topology = ParseOrDie(
      "hosts { name: \"a\" spec: \"weak\" gpus { name: \"gpu0\" spec: \"l40s\" slot: \"s0\" } "
      "gpus { name: \"gpu1\" spec: \"l40s\" slot: \"s1\" } }",
      specs);
  EXPECT_THAT(SegmentNames(topology, 0, 1),
              ElementsAre("a.gpu0 pcie up", "a.rc0 peer forward", "a.gpu1 pcie down"));
  EXPECT_THAT(SegmentNames(topology, 1, 0), Contains("a.rc0 peer backward"));
  EXPECT_EQ(topology.route(0, 1).payload_bytes_per_s, 20e9);
  EXPECT_EQ(SegmentKindName(Bottleneck(topology, 0, 1).kind), "root complex");
}

TEST(HostMemoryTest, GeForceCardsAreStagedEvenInsideAHost) {
  const Topology topology = ParseOrDie(
      "hosts { name: \"a\" spec: \"trinity_host_a\" gpus { name: \"gpu0\" spec: \"rtx_5090\" "
      "slot: \"slot1\" } gpus { name: \"gpu1\" spec: \"rtx_5090\" slot: \"slot2\" } }");
  EXPECT_EQ(topology.route(0, 1).kind, PATH_KIND_HOST_MEMORY);
  EXPECT_THAT(SegmentNames(topology, 0, 1),
              ElementsAre("a.gpu0 pcie up", "a memory", "a.gpu1 pcie down"));
  // PCIe 5 x16's 57.6 GB/s, not half of the memory's 332.8.
  EXPECT_EQ(Bottleneck(topology, 0, 1).name, "a.gpu0 pcie up");
}

TEST(NvlinkTest, OnlyWithinADomain) {
  const Topology topology = ParseOrDie(
      "hosts { name: \"a\" spec: \"hgx_sxm\" gpus { name: \"gpu0\" spec: \"h100_sxm\" slot: "
      "\"gpu0\" } gpus { name: \"gpu1\" spec: \"h100_sxm\" slot: \"gpu1\" } gpus { name: "
      "\"gpu2\" spec: \"h100_sxm\" slot: \"gpu2\" } "
      "nvlink_domains { name: \"pair\" gpus: [\"gpu0\", \"gpu1\"] } }");
  EXPECT_EQ(topology.route(0, 1).kind, PATH_KIND_NVLINK);
  EXPECT_EQ(topology.route(0, 2).kind, PATH_KIND_PCIE_PEER);
}

TEST(PacketSizeTest, OnePathMtuForTheWholeClusterTheLeastOfItsNics) {
  std::string text = absl::StrCat(OneGpuHost("a"), OneGpuHost("b"), kRaisedLevel,
                                  "links { a: \"a.nic0\" b: \"b.nic0\" }");
  const std::size_t at = text.rfind("slot: \"slot2\" }");
  text.replace(at, 15, "slot: \"slot2\" override { roce_mtu_bytes: 512 } }");
  const Topology topology = ParseOrDie(text);
  EXPECT_EQ(topology.network_mtu_bytes(), 512);
  // 50 x 512 / 594, both ways.
  EXPECT_NEAR(topology.route(0, 1).payload_bytes_per_s / 1e9, 43.098, 0.001);
  EXPECT_NEAR(topology.route(1, 0).payload_bytes_per_s / 1e9, 43.098, 0.001);
  ASSERT_EQ(topology.warnings().size(), 1u);
  EXPECT_THAT(topology.warnings()[0], HasSubstr("b.nic0: roce_mtu_bytes 512 is the least"));
}

TEST(RanksTest, GpusAreThoseOfTheRanksInTheirOrder) {
  const Topology topology =
      ParseOrDie(absl::StrCat(OneGpuHost("a"), OneGpuHost("b"), OneGpuHost("spare"), kRaisedLevel,
                              "links { a: \"a.nic0\" b: \"b.nic0\" } ranks: [\"b.gpu0\", "
                              "\"a.gpu0\"]"));
  ASSERT_EQ(topology.gpus().size(), 2u);
  EXPECT_EQ(topology.gpus()[0].name, "b.gpu0");
  EXPECT_THAT(SegmentNames(topology, 0, 1), Contains("b.nic0 tx"));
}

TEST(NetworkRateTest, OnlyNicsThatRoutesUseCount) {
  const Topology topology = Server(NicOf("near", "nic0") +
                                       "nics { name: \"spare\" spec: \"connectx6_200g\" slot: "
                                       "\"nic1\" override { rate_gbps: 10 } } ",
                                   "links { a: \"a.near\" b: \"sw.port1\" } ");
  EXPECT_EQ(topology.network_rate_gbps(), 200);
}

// A host with a processor, a GPU and a NIC below one root complex.
std::string ProcessorHost(const std::string& name) {
  return absl::StrCat("hosts { name: \"", name,
                      "\" spec: \"trinity_host_a\" gpus { name: \"cpu0\" spec: \"cpu_x86\" } "
                      "gpus { name: \"gpu0\" spec: \"rtx_5090\" slot: \"slot1\" } "
                      "nics { name: \"nic0\" spec: \"connectx7_400g\" slot: \"slot2\" } } ");
}

TEST(ProcessorTest, ReachesGpusOfItsHostOverTheirPcie) {
  const Topology topology = ParseOrDie(ProcessorHost("a"));
  EXPECT_THAT(SegmentNames(topology, 0, 1), ElementsAre("a memory", "a.gpu0 pcie down"));
  EXPECT_THAT(SegmentNames(topology, 1, 0), ElementsAre("a.gpu0 pcie up", "a memory"));
  EXPECT_EQ(topology.route(0, 1).kind, PATH_KIND_HOST_MEMORY);
}

TEST(ProcessorTest, NicsReadAndWriteItsMemory) {
  const Topology topology = ParseOrDie(absl::StrCat(ProcessorHost("a"), ProcessorHost("b"),
                                                    "links { a: \"a.nic0\" b: \"b.nic0\" } "
                                                    "ranks: [\"a.cpu0\", \"b.cpu0\", \"b.gpu0\"]"));
  EXPECT_THAT(SegmentNames(topology, 0, 1), ElementsAre("a memory", "a.nic0 pcie down", "a.nic0 tx",
                                                        "b.nic0 pcie up", "b memory"));
  EXPECT_TRUE(topology.route(0, 1).gpudirect) << topology.route(0, 1).gpudirect_reason;
  // A GPU's end is what it is without GPUDirect.
  EXPECT_FALSE(topology.route(0, 2).gpudirect);
  EXPECT_THAT(topology.route(0, 2).gpudirect_reason, HasSubstr("b.gpu0 (rtx_5090)"));
  EXPECT_THAT(SegmentNames(topology, 0, 2), Contains("b.nic0 staging in"));
  EXPECT_THAT(SegmentNames(topology, 0, 2), Not(Contains("a.nic0 staging out")));
}

TEST(ProcessorTest, TcpBetweenProcessorsMissesNoGpudirect) {
  const Topology topology = ParseOrDie(absl::StrCat(
      ProcessorHost("a"), ProcessorHost("b"),
      "links { a: \"a.nic0\" b: \"b.nic0\" } communication { transport: TRANSPORT_TCP } "
      "ranks: [\"a.cpu0\", \"b.cpu0\"]"));
  EXPECT_EQ(topology.route(0, 1).kind, PATH_KIND_NETWORK_TCP);
  EXPECT_TRUE(topology.route(0, 1).gpudirect) << topology.route(0, 1).gpudirect_reason;
}

TEST(ProcessorTest, IsAtTheFirstRootComplex) {
  const Topology topology = ParseOrDie(
      "hosts { name: \"a\" spec: \"hgx_sxm\" gpus { name: \"cpu0\" spec: \"cpu_x86\" } "
      "gpus { name: \"gpu7\" spec: \"rtx_5090\" slot: \"gpu7\" } }");
  EXPECT_THAT(SegmentNames(topology, 0, 1),
              ElementsAre("a memory", "a.rc0->rc1", "a.switch3 pcie down", "a.gpu7 pcie down"));
}

}  // namespace
}  // namespace fabricast
