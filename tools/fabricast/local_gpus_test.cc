#include "tools/fabricast/local_gpus.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kGb = 1'000'000'000;

Topology TopologyOf(const std::vector<FoundGpu>& gpus) {
  const absl::StatusOr<Cluster> cluster = LocalGpuCluster(gpus);
  EXPECT_TRUE(cluster.ok()) << cluster.status();
  const absl::StatusOr<Topology> topology = Topology::Create(kLocalGpu, *cluster);
  EXPECT_TRUE(topology.ok()) << topology.status();
  return *topology;
}

TEST(LocalGpusTest, AMachineOfKnownGpusIsATopology) {
  const Topology one = TopologyOf({{"NVIDIA H200", 150 * kGb}});
  ASSERT_EQ(one.gpus().size(), 1);
  EXPECT_EQ(one.gpus()[0].name, "local.gpu0");
  EXPECT_EQ(one.gpus()[0].spec.name(), "h200_sxm");

  const Topology two =
      TopologyOf({{"NVIDIA H100 80GB HBM3", 85 * kGb}, {"NVIDIA H100 80GB HBM3", 85 * kGb}});
  ASSERT_EQ(two.gpus().size(), 2);
  EXPECT_EQ(two.gpus()[1].spec.name(), "h100_sxm");
  EXPECT_EQ(DeviceOf(two, 1), 1);

  EXPECT_EQ(TopologyOf({{"NVIDIA H20", 96 * kGb}}).gpus()[0].spec.name(), "h20");
  EXPECT_EQ(TopologyOf({{"NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 102 * kGb}})
                .gpus()[0]
                .spec.name(),
            "rtx_pro_6000_blackwell_workstation");
}

TEST(LocalGpusTest, AnUnknownGpuIsNamed) {
  const absl::Status status = LocalGpuCluster({{"NVIDIA T4", 16 * kGb}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("GPU 0 is a NVIDIA T4"));
}

TEST(LocalGpusTest, AGpuOfAHostHasItsPlaceThereWhateverItsRank) {
  const absl::StatusOr<Topology> topology =
      Topology::Load("h200_x4", {{"cluster.ranks", "node_a.gpu2 node_a.gpu0"}});
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_EQ(DeviceOf(*topology, 0), 2);
  EXPECT_EQ(DeviceOf(*topology, 1), 0);
}

TEST(LocalGpusTest, AnotherGpuThanTheTopologysIsTold) {
  const absl::StatusOr<Topology> topology = Topology::Load("h200_x4");
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_THAT(Difference(*topology, 0, {"NVIDIA H200", 150 * kGb}), IsEmpty());
  EXPECT_THAT(Difference(*topology, 1, {"NVIDIA H100 80GB HBM3", 85 * kGb}),
              HasSubstr("node_a.gpu1: the topology says h200_sxm, and this machine's GPU 1 is a "
                        "NVIDIA H100 80GB HBM3 (h100_sxm)"));
  // Half of one, as MIG divides it.
  EXPECT_THAT(Difference(*topology, 0, {"NVIDIA H200 MIG 3g.71gb", 75 * kGb}),
              HasSubstr("has 75.0 GB of memory, not 141.0"));
}

}  // namespace
}  // namespace fabricast
