// What is built in: it loads, says what it is, and holds what others count on.
#include <cmath>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/embed/embedded_file.h"
#include "topology/cluster_files.h"
#include "topology/spec_files.h"
#include "topology/topology.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;

TEST(BundledTest, ClustersAreThoseOfTheReadme) {
  EXPECT_THAT(Topology::BundledNames(),
              ElementsAre("h200_x2", "h200_x4", "leaf_spine_16", "local_cpu", "rehearsal_2x",
                          "rtx_pro_6000_x8", "trinity_200g", "trinity_400g"));
}

TEST(BundledTest, EveryClusterLoadsWithoutWarningsAndIsNamedAsItsFile) {
  for (const std::string& name : Topology::BundledNames()) {
    SCOPED_TRACE(name);
    const absl::StatusOr<Topology> topology = Topology::Load(name);
    ASSERT_TRUE(topology.ok()) << topology.status();
    EXPECT_EQ(topology->name(), name);
    EXPECT_THAT(topology->warnings(), IsEmpty());
    EXPECT_FALSE(topology->cluster().description().empty());
    for (std::size_t i = 0; i < topology->gpus().size(); ++i) {
      EXPECT_EQ(topology->kernels(static_cast<int>(i)).name(),
                topology->gpus()[i].spec.calibration());
    }
  }
}

TEST(BundledTest, EveryRouteIsWhole) {
  for (const std::string& name : Topology::BundledNames()) {
    SCOPED_TRACE(name);
    const absl::StatusOr<Topology> topology = Topology::Load(name);
    ASSERT_TRUE(topology.ok()) << topology.status();
    const int count = static_cast<int>(topology->gpus().size());
    for (int from = 0; from < count; ++from) {
      for (int to = 0; to < count; ++to) {
        if (from == to) continue;
        const Route& route = topology->route(from, to);
        ASSERT_NE(route.kind, PATH_KIND_UNSPECIFIED);
        ASSERT_FALSE(route.segments.empty());
        ASSERT_GT(route.latency_s, 0);
        ASSERT_TRUE(route.gpudirect) << route.gpudirect_reason;
        for (const int segment : route.segments) {
          const Segment& s = topology->segments()[segment];
          ASSERT_GE(s.payload_bytes_per_s, route.payload_bytes_per_s) << s.name;
          ASSERT_LE(s.payload_bytes_per_s, s.line_bytes_per_s) << s.name;
        }
      }
    }
  }
}

TEST(BundledTest, EveryFilesFirstLineSaysWhatItIs) {
  for (const EmbeddedFile& file : SpecFiles()) {
    EXPECT_TRUE(absl::StartsWith(file.contents, "# proto-message: fabricast.")) << file.path;
  }
  for (const EmbeddedFile& file : ClusterFiles()) {
    EXPECT_TRUE(absl::StartsWith(file.contents, "# proto-message: fabricast.Cluster\n"))
        << file.path;
  }
}

TEST(BundledTest, SpecsAreNamedAsTheirFiles) {
  const SpecLibrary& library = SpecLibrary::Bundled();
  for (const EmbeddedFile& file : SpecFiles()) {
    std::string stem(file.path.substr(file.path.rfind('/') + 1));
    stem.resize(stem.size() - std::string(".txtpb").size());
    EXPECT_TRUE(library.gpu(stem) || library.nic(stem) || library.switch_spec(stem) ||
                library.host(stem) || library.kernels(stem) || library.nccl(stem))
        << file.path;
  }
}

TEST(BundledTest, TheHardwareOthersCountOnIsThere) {
  const SpecLibrary& library = SpecLibrary::Bundled();
  EXPECT_THAT(library.gpu_names(),
              IsSupersetOf({"b200", "h100_sxm", "h200_sxm", "h20", "l40s", "rtx_5090",
                            "rtx_pro_6000_blackwell_max_q", "rtx_pro_6000_blackwell_server",
                            "rtx_pro_6000_blackwell_workstation"}));
  EXPECT_THAT(library.nic_names(),
              IsSupersetOf({"connectx6_200g", "connectx7_400g", "connectx8_800g"}));
  EXPECT_THAT(library.switch_names(), IsSupersetOf({"leaf_400g", "leaf_800g", "mikrotik_crs812"}));
  EXPECT_THAT(library.host_names(),
              IsSupersetOf({"hgx_sxm", "pcie_8gpu_server", "trinity_host_a", "trinity_host_b"}));
  EXPECT_THAT(library.kernels_names(),
              IsSupersetOf({"cpu_x86", "h200_sxm", "rtx_pro_6000_server"}));
  EXPECT_THAT(library.nccl_names(), IsSupersetOf({"loopback", "nccl_2_28"}));
}

TEST(BundledTest, EveryGpusCalibrationIsBundled) {
  const SpecLibrary& library = SpecLibrary::Bundled();
  for (const std::string& name : library.gpu_names()) {
    EXPECT_NE(library.kernels(library.gpu(name)->calibration()), nullptr) << name;
  }
}

TEST(BundledTest, PeaksAreMultiprocessorsTimesClockTimesOperations) {
  const SpecLibrary& library = SpecLibrary::Bundled();
  const auto peak = [&](const char* name, int operations) {
    const GpuSpec& gpu = *library.gpu(name);
    return gpu.multiprocessors() * gpu.boost_clock_mhz() * 1e6 * operations / 1e12;
  };
  // Blackwell with GDDR7: 1024 dense BF16 operations a clock and multiprocessor, GeForce half of
  // it.
  for (const auto& [name, operations] :
       {std::pair("rtx_pro_6000_blackwell_workstation", 1024),
        std::pair("rtx_pro_6000_blackwell_max_q", 1024), std::pair("rtx_5090", 512)}) {
    EXPECT_NEAR(library.gpu(name)->bf16_tflops(), peak(name, operations), 0.5) << name;
  }
}

TEST(BundledTest, TheMaxQIsScaledByItsPower) {
  // ((300 - 100) / (600 - 100))^(1/3) x 2493 / 2288, to two digits.
  EXPECT_NEAR(
      SpecLibrary::Bundled().gpu("rtx_pro_6000_blackwell_max_q")->sustained_compute_fraction(),
      std::cbrt(200.0 / 500.0) * 2493 / 2288, 0.005);
}

TEST(BundledTest, TrinitysRanksAreInTheOrderOfThePipeline) {
  const absl::StatusOr<Topology> topology = Topology::Load("trinity_200g");
  ASSERT_TRUE(topology.ok()) << topology.status();
  std::vector<std::string> names;
  for (const GpuNode& gpu : topology->gpus()) {
    names.push_back(absl::StrCat(gpu.name, " on ", gpu.host, ": ", gpu.spec.name()));
  }
  EXPECT_THAT(names, ElementsAre("node_a.gpu0 on node_a: rtx_pro_6000_blackwell_workstation",
                                 "node_a.gpu1 on node_a: rtx_pro_6000_blackwell_workstation",
                                 "node_b.gpu0 on node_b: rtx_pro_6000_blackwell_max_q"));
  EXPECT_EQ(topology->transport(), TRANSPORT_NCCL_RDMA);
  EXPECT_EQ(topology->p2p_net_chunk_bytes(), 131072);
  EXPECT_EQ(topology->nccl().name(), "nccl_2_28");
}

TEST(BundledTest, LocalCpuIsThreeProcessorsJoinedByHostMemory) {
  const absl::StatusOr<Topology> topology = Topology::Load("local_cpu");
  ASSERT_TRUE(topology.ok()) << topology.status();
  ASSERT_EQ(topology->gpus().size(), 3u);
  for (const GpuNode& gpu : topology->gpus()) {
    EXPECT_TRUE(gpu.spec.processor());
    EXPECT_EQ(gpu.spec.activation_bytes(), 4);
  }
  EXPECT_EQ(topology->nccl().name(), "loopback");
  EXPECT_EQ(topology->network_rate_gbps(), 0);
  // The host's memory is all there is.
  ASSERT_EQ(topology->segments().size(), 1u);
  EXPECT_EQ(topology->segments()[0].name, "local memory");
  const Route& route = topology->route(0, 1);
  EXPECT_EQ(route.kind, PATH_KIND_HOST_MEMORY);
  EXPECT_THAT(route.segments, ElementsAre(0));
  // Written and read: half of 89.6 GB/s.
  EXPECT_DOUBLE_EQ(route.payload_bytes_per_s, 44.8e9);
}

// Float32 as measured: 2 cores x 2 units x 16 lanes x 2 at a clock between an AMD EPYC 9655's base,
// 2.6 GHz, and its boost, 4.5 GHz.
TEST(BundledTest, AProcessorsPeakIsThatOfItsCores) {
  const double peak = 1e12 * SpecLibrary::Bundled().gpu("cpu_x86")->bf16_tflops();
  EXPECT_GT(peak, 2 * 2 * 16 * 2 * 2.6e9);
  EXPECT_LT(peak, 2 * 2 * 16 * 2 * 4.5e9);
}

TEST(ReadmeTest, TheClusterItDescribesIsSound) {
  std::ifstream file("topology/README.md");
  const std::string readme((std::istreambuf_iterator<char>(file)),
                           std::istreambuf_iterator<char>());
  const std::size_t begin = readme.find("# proto-message: fabricast.Cluster");
  ASSERT_NE(begin, std::string::npos);
  const std::string text = readme.substr(begin, readme.find("```", begin) - begin);
  const absl::StatusOr<Topology> topology = Topology::Parse("README.md", text);
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_THAT(topology->warnings(), IsEmpty());
  EXPECT_TRUE(topology->route(0, 1).gpudirect) << topology->route(0, 1).gpudirect_reason;
}

TEST(BundledTest, AClustersTextIsThereToStartFrom) {
  EXPECT_TRUE(absl::StrContains(Topology::BundledText("trinity_200g"), "name: \"trinity_200g\""));
  EXPECT_EQ(Topology::BundledText("trinity"), "");
}

}  // namespace
}  // namespace fabricast
