#include "runtime/transport/nccl_environment.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;
using ::testing::Pair;

namespace fs = std::filesystem;

// trinity_400g with addresses and what `communication` says.
Topology Trinity(const std::string& communication, const std::string& name = "trinity_400g") {
  std::string text(Topology::BundledText(name));
  text = absl::StrReplaceAll(
      text, {{"spec: \"trinity_host_a\"", "spec: \"trinity_host_a\" address: \"10.0.0.1\""},
             {"spec: \"trinity_host_b\"", "spec: \"trinity_host_b\" address: \"10.0.0.2\""},
             {"communication { gdr_level: PCIE_DISTANCE_SYS }",
              "communication { " + communication + " }"}});
  absl::StatusOr<Topology> topology = Topology::Parse("trinity.txtpb", text);
  FABRICAST_CHECK(topology.ok()) << topology.status();
  return *std::move(topology);
}

HostNetwork NodeA() {
  HostNetwork network;
  network.interfaces = {{"127.0.0.1", "lo"}, {"10.0.0.1", "enp1s0f0np0"}, {"192.0.2.7", "eno1"}};
  network.rdma_ports = {{.device = "mlx5_0", .port = 1, .active = true, .gid_index = 5},
                        {.device = "mlx5_1", .port = 1, .active = false, .gid_index = 3},
                        {.device = "mlx5_2", .port = 1, .active = true, .gid_index = -1}};
  return network;
}

std::vector<std::pair<std::string, std::string>> Values(
    const std::vector<EnvironmentSetting>& settings) {
  std::vector<std::pair<std::string, std::string>> values;
  for (const EnvironmentSetting& setting : settings) {
    EXPECT_NE(setting.reason, "") << setting.name;
    values.emplace_back(setting.name, setting.value);
  }
  return values;
}

std::string Reason(const std::vector<EnvironmentSetting>& settings, const std::string& name) {
  for (const EnvironmentSetting& setting : settings) {
    if (setting.name == name) return setting.reason;
  }
  return "";
}

TEST(CudaEnvironmentTest, LoadsAllKernelsAtOnceWhereGpusShareAStage) {
  EXPECT_THAT(Values(CudaEnvironment(/*shared=*/false)),
              ElementsAre(Pair("CUDA_DEVICE_MAX_CONNECTIONS", "32")));
  EXPECT_THAT(
      Values(CudaEnvironment(/*shared=*/true)),
      ElementsAre(Pair("CUDA_DEVICE_MAX_CONNECTIONS", "32"), Pair("CUDA_MODULE_LOADING", "EAGER")));
}

TEST(NcclEnvironmentTest, OneHostNeedsNoNetwork) {
  const absl::StatusOr<Topology> topology = Topology::Load("h200_x4");
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_THAT(Values(NcclEnvironment(*topology, {0, 1, 2}, "node_a", NodeA())),
              ElementsAre(Pair("NCCL_NVLS_ENABLE", "0"), Pair("NCCL_SOCKET_IFNAME", "=lo"),
                          Pair("NCCL_IB_DISABLE", "1")));
}

TEST(NcclEnvironmentTest, TwoHostsGoOverThePortsThatAreUpAtTheirOwnGidAndAsFarAsTheTopologySays) {
  const Topology topology = Trinity("gdr_level: PCIE_DISTANCE_SYS");
  const std::vector<EnvironmentSetting> settings =
      NcclEnvironment(topology, {0, 1, 2}, "node_a", NodeA());
  EXPECT_THAT(
      Values(settings),
      ElementsAre(Pair("NCCL_NVLS_ENABLE", "0"), Pair("NCCL_SOCKET_IFNAME", "=enp1s0f0np0"),
                  Pair("NCCL_IB_HCA", "=mlx5_0:1"), Pair("NCCL_IB_GID_INDEX", "5"),
                  Pair("NCCL_NET_GDR_LEVEL", "SYS"), Pair("NCCL_P2P_NET_CHUNKSIZE", "524288"),
                  Pair("NCCL_BUFFSIZE", "8388608")));
  EXPECT_THAT(Reason(settings, "NCCL_P2P_NET_CHUNKSIZE"),
              HasSubstr("this topology's has 400 Gbps"));
  EXPECT_THAT(Reason(settings, "NCCL_P2P_NET_CHUNKSIZE"), HasSubstr("wrong results"));
}

TEST(NcclEnvironmentTest, AStageOfOneHostOnlyIgnoresTheOther) {
  const Topology topology = Trinity("");
  EXPECT_THAT(Values(NcclEnvironment(topology, {0, 1}, "node_a", NodeA())),
              IsSupersetOf({Pair("NCCL_IB_DISABLE", "1")}));
}

TEST(NcclEnvironmentTest, At200GbpsNcclsOwnChunksAreEnough) {
  const Topology topology = Trinity("gdr_level: PCIE_DISTANCE_SYS", "trinity_200g");
  const std::vector<EnvironmentSetting> settings =
      NcclEnvironment(topology, {0, 1, 2}, "node_a", NodeA());
  EXPECT_EQ(Reason(settings, "NCCL_P2P_NET_CHUNKSIZE"), "");
  EXPECT_EQ(Reason(settings, "NCCL_BUFFSIZE"), "");
}

TEST(NcclEnvironmentTest, TheTopologysChunkIsTaken) {
  EXPECT_THAT(
      Values(NcclEnvironment(Trinity("p2p_net_chunk_bytes: 262144"), {0, 1, 2}, "node_a", NodeA())),
      IsSupersetOf({Pair("NCCL_P2P_NET_CHUNKSIZE", "262144"), Pair("NCCL_BUFFSIZE", "8388608")}));
  const std::vector<EnvironmentSetting> as_nccl =
      NcclEnvironment(Trinity("p2p_net_chunk_bytes: 131072"), {0, 1, 2}, "node_a", NodeA());
  EXPECT_THAT(Values(as_nccl), IsSupersetOf({Pair("NCCL_P2P_NET_CHUNKSIZE", "131072")}));
  EXPECT_EQ(Reason(as_nccl, "NCCL_BUFFSIZE"), "");
}

TEST(NcclEnvironmentTest, GpuDirectIsAsTheTopologySays) {
  const auto level = [](const std::string& communication) {
    for (const EnvironmentSetting& setting :
         NcclEnvironment(Trinity(communication), {0, 1, 2}, "node_a", NodeA())) {
      if (setting.name == "NCCL_NET_GDR_LEVEL") return setting.value;
    }
    return std::string("NCCL's");
  };
  EXPECT_EQ(level(""), "NCCL's");
  EXPECT_EQ(level("gdr_level: PCIE_DISTANCE_PHB"), "PHB");
  EXPECT_EQ(level("gdr_level: PCIE_DISTANCE_PXB"), "PXB");
  EXPECT_EQ(level("gdr_level: PCIE_DISTANCE_SYS gpudirect: false"), "LOC");
}

TEST(NcclEnvironmentTest, WithoutRdmaItIsDisabledAndTheReasonSaysWhatIsMissing) {
  HostNetwork network = NodeA();
  network.rdma_ports.erase(network.rdma_ports.begin());  // the one that was usable
  const std::vector<EnvironmentSetting> settings =
      NcclEnvironment(Trinity(""), {0, 1, 2}, "node_a", network);
  EXPECT_THAT(Values(settings), IsSupersetOf({Pair("NCCL_IB_DISABLE", "1")}));
  EXPECT_THAT(Reason(settings, "NCCL_IB_DISABLE"), HasSubstr("no active port"));
  EXPECT_EQ(Reason(settings, "NCCL_IB_HCA"), "");
}

TEST(NcclEnvironmentTest, PortsWithDifferentGidsAreFoundByNcclItself) {
  HostNetwork network = NodeA();
  network.rdma_ports[2].gid_index = 3;
  const std::vector<EnvironmentSetting> settings =
      NcclEnvironment(Trinity(""), {0, 1, 2}, "node_a", network);
  EXPECT_THAT(Values(settings), IsSupersetOf({Pair("NCCL_IB_HCA", "=mlx5_0:1,mlx5_2:1"),
                                              Pair("NCCL_IB_ROCE_VERSION_NUM", "2"),
                                              Pair("NCCL_IB_ADDR_FAMILY", "AF_INET")}));
  EXPECT_EQ(Reason(settings, "NCCL_IB_GID_INDEX"), "");
}

TEST(NcclEnvironmentTest, AnAddressThatNoInterfaceHasLeavesTheChoiceToNccl) {
  HostNetwork network = NodeA();
  network.interfaces.erase("10.0.0.1");
  EXPECT_EQ(
      Reason(NcclEnvironment(Trinity(""), {0, 1, 2}, "node_a", network), "NCCL_SOCKET_IFNAME"), "");
}

void Write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text << "\n";
}

TEST(HostNetworkTest, ReadsPortsAndTheirGidsFromSysfs) {
  const fs::path sysfs = fs::path(testing::TempDir()) / "sysfs";
  const auto gid = [&](const fs::path& port, int index, const std::string& type,
                       const std::string& address) {
    Write(port / "gid_attrs/types" / std::to_string(index), type);
    Write(port / "gids" / std::to_string(index), address);
  };
  const fs::path first = sysfs / "class/infiniband/mlx5_0/ports/1";
  Write(first / "state", "4: ACTIVE");
  gid(first, 0, "IB/RoCE v1", "fe80:0000:0000:0000:0ac0:ebff:fe12:3456");
  gid(first, 1, "RoCE v2", "fe80:0000:0000:0000:0ac0:ebff:fe12:3456");
  gid(first, 2, "IB/RoCE v1", "0000:0000:0000:0000:0000:ffff:0a00:0001");
  gid(first, 10, "RoCE v2", "0000:0000:0000:0000:0000:ffff:0a00:0001");
  const fs::path second = sysfs / "class/infiniband/mlx5_1/ports/1";
  Write(second / "state", "1: DOWN");
  gid(second, 0, "IB/RoCE v1", "fe80:0000:0000:0000:0ac0:ebff:fe12:3457");

  const HostNetwork network = HostNetwork::Read(sysfs.string());
  ASSERT_EQ(network.rdma_ports.size(), 2u);
  EXPECT_EQ(network.rdma_ports[0].device, "mlx5_0");
  EXPECT_EQ(network.rdma_ports[0].port, 1);
  EXPECT_TRUE(network.rdma_ports[0].active);
  EXPECT_EQ(network.rdma_ports[0].gid_index, 10);
  EXPECT_EQ(network.rdma_ports[1].device, "mlx5_1");
  EXPECT_FALSE(network.rdma_ports[1].active);
  EXPECT_EQ(network.rdma_ports[1].gid_index, -1);
  EXPECT_THAT(network.interfaces, IsSupersetOf({Pair("127.0.0.1", "lo")}));
}

TEST(HostNetworkTest, AHostWithoutRdmaHasNoPorts) {
  EXPECT_TRUE(HostNetwork::Read("/nowhere").rdma_ports.empty());
}

TEST(SetEnvironmentTest, WhatTheUserHasSetWinsAndIsSaid) {
  ASSERT_EQ(setenv("FABRICAST_TEST_MINE", "7", 1), 0);
  ASSERT_EQ(unsetenv("FABRICAST_TEST_OURS"), 0);
  const std::vector<EnvironmentSetting> settings = SetEnvironment(
      {{"FABRICAST_TEST_MINE", "0", "a reason"}, {"FABRICAST_TEST_OURS", "=lo", "another reason"}});
  EXPECT_STREQ(std::getenv("FABRICAST_TEST_MINE"), "7");
  EXPECT_STREQ(std::getenv("FABRICAST_TEST_OURS"), "=lo");
  EXPECT_EQ(EnvironmentText(settings),
            "FABRICAST_TEST_MINE=7 (set already)\n"
            "FABRICAST_TEST_OURS==lo (another reason)\n");
}

}  // namespace
}  // namespace fabricast
