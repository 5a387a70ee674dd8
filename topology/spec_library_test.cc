#include "topology/spec_library.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kGpu[] = R"(# proto-message: fabricast.GpuSpec
name: "card"
memory_gb: 96 memory_bandwidth_gb_s: 1792 bf16_tflops: 500
pcie_generation: 5 pcie_lanes: 16 gpudirect_rdma: true pcie_peer_to_peer: false
calibration: "h200_sxm"
sources { fields: ["memory_gb", "memory_bandwidth_gb_s", "bf16_tflops"] reference: "sheet" }
sources { fields: ["pcie_generation", "pcie_lanes", "gpudirect_rdma", "pcie_peer_to_peer"]
          reference: "sheet" }
)";

constexpr char kSwitch[] = R"(# proto-message: fabricast.SwitchSpec
name: "box"
ports { prefix: "port" count: 4 rate_gbps: 100 }
latency_ns: 500
sources { fields: ["count", "rate_gbps", "latency_ns"] reference: "sheet" }
)";

constexpr char kHost[] = R"(# proto-message: fabricast.HostSpec
name: "machine"
root_complexes { name: "rc0" }
slots { name: "slot1" upstream: "rc0" generation: 5 lanes: 16 }
memory_bandwidth_gb_s: 300
sources { fields: ["generation", "lanes", "memory_bandwidth_gb_s"] reference: "sheet" }
)";

constexpr char kKernels[] = R"(# proto-message: fabricast.KernelCalibration
name: "kernels"
gpu: "card"
gemms { weight_format: "bf16" points { x: 1 efficiency: 0.9 } points { x: 2 efficiency: 0.8 } }
decode_attention { points { x: 1 efficiency: 0.9 } }
prefill_attention { points { x: 1 efficiency: 0.9 } }
elementwise_efficiency: 0.5
)";

constexpr char kNccl[] = R"(# proto-message: fabricast.NcclCalibration
name: "nccl"
sends { path: PATH_KIND_NVLINK points { bytes: 1 latency_us: 2 } points { bytes: 2 latency_us: 2 } }
host_staging_gb_s: 6
)";

TEST(SpecLibraryTest, AddsEachKindByItsFirstLine) {
  SpecLibrary library;
  for (const char* text : {kGpu, kSwitch, kHost, kKernels, kNccl}) {
    const absl::Status status = library.AddText("f.txtpb", text);
    EXPECT_TRUE(status.ok()) << status;
  }
  ASSERT_NE(library.gpu("card"), nullptr);
  EXPECT_EQ(library.gpu("card")->memory_gb(), 96);
  EXPECT_EQ(library.gpu("machine"), nullptr);
  EXPECT_NE(library.host("machine"), nullptr);
  EXPECT_NE(library.switch_spec("box"), nullptr);
  EXPECT_NE(library.kernels("kernels"), nullptr);
  EXPECT_NE(library.nccl("nccl"), nullptr);
  EXPECT_EQ(library.nic("nccl"), nullptr);
  EXPECT_THAT(library.gpu_names(), ElementsAre("card"));
}

TEST(SpecLibraryTest, TwoOfOneNameNameBothFiles) {
  SpecLibrary library;
  ASSERT_TRUE(library.AddText("first.txtpb", kGpu).ok());
  const absl::Status status = library.AddText("second.txtpb", kGpu);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(status.message(),
            "second.txtpb: GpuSpec \"card\" is also in first.txtpb; rename one of them");
}

TEST(SpecLibraryTest, AMissingDirectoryIsNamed) {
  SpecLibrary library;
  EXPECT_EQ(library.AddDirectory("/no/such/folder").code(), absl::StatusCode::kNotFound);
}

struct Case {
  std::string what;
  std::string text;
  std::string from;
  std::string to;
  std::vector<std::string> said;
};

TEST(SpecLibraryTest, EveryMistakeNamesFileSpecFieldAndMend) {
  const std::vector<Case> cases = {
      {"no first line",
       kGpu,
       "# proto-message: fabricast.GpuSpec\n",
       "",
       {"f.txtpb:1: the first line must say what the file is"}},
      {"unknown message",
       kGpu,
       "fabricast.GpuSpec",
       "fabricast.GPUSpec",
       {"fabricast.GPUSpec is neither a spec", "did you mean \"fabricast.GpuSpec\"?"}},
      {"no name", kGpu, "name: \"card\"", "", {"GPU spec: name is missing"}},
      {"number without a source",
       kGpu,
       "\"memory_gb\", ",
       "",
       {"GPU spec card: no source for memory_gb; add sources { fields: \"memory_gb\""}},
      {"flag without a source",
       kGpu,
       ", \"pcie_peer_to_peer\"",
       "",
       {"no source for pcie_peer_to_peer"}},
      {"nested number without a source",
       kSwitch,
       "\"count\", ",
       "",
       {"switch spec box: no source for count"}},
      {"source of a field that does not exist",
       kGpu,
       "[\"memory_gb\"",
       "[\"memory\"",
       {"sources[0]: no field \"memory\"", "did you mean \"memory_gb\"?"}},
      {"source without a reference",
       kSwitch,
       "reference: \"sheet\"",
       "",
       {"sources[0]: reference is missing"}},
      {"GPU without memory", kGpu, "memory_gb: 96", "", {"GPU spec card: memory_gb is missing"}},
      {"GPU without much",
       kGpu,
       "pcie_generation: 5 pcie_lanes: 16",
       "",
       {"pcie_generation, pcie_lanes are missing; give them with a source"}},
      {"GPU without a calibration",
       kGpu,
       "calibration: \"h200_sxm\"",
       "",
       {"calibration is missing"}},
      {"bandwidth in TB/s is not noticed, in MB/s it is",
       kGpu,
       "memory_bandwidth_gb_s: 1792",
       "memory_bandwidth_gb_s: 1792000",
       {"memory_bandwidth_gb_s is 1.792e+06", "at most 100000"}},
      {"number of a list's entry",
       kSwitch,
       "count: 4",
       "",
       {"switch spec box ports[0]: count is 0; it must be more than 0 and at most 1024"}},
      {"far too many ports", kSwitch, "count: 4", "count: 2000000000", {"count is 2e+09"}},
      {"ports of one name",
       kSwitch,
       "latency_ns",
       "ports { prefix: \"port\" count: 1 rate_gbps: 1 } latency_ns",
       {"two ports are called \"port1\""}},
      {"no ports",
       kSwitch,
       "ports { prefix: \"port\" count: 4 rate_gbps: 100 }",
       "",
       {"switch spec box: no ports; add ports {"}},
      {"port group without a prefix", kSwitch, "prefix: \"port\"", "", {"name is missing"}},
      {"slot without lanes",
       kHost,
       "lanes: 16",
       "",
       {"host spec machine slots slot1: lanes is 0; it is one of 1, 2, 4, 8, 16"}},
      {"slot on nothing",
       kHost,
       "upstream: \"rc0\"",
       "upstream: \"rc7\"",
       {"slot slot1: upstream \"rc7\" is no root complex or PCIe switch", "rc0"}},
      {"two processors without a link",
       kHost,
       "slots {",
       "root_complexes { name: \"rc1\" } slots {",
       {"root_complex_link_gb_s is missing"}},
      {"points out of order",
       kKernels,
       "x: 2",
       "x: 0.5",
       {"kernel calibration kernels: gemms bf16: points[1]: x is 0.5 after 1; sort"}},
      {"efficiency of zero",
       kKernels,
       "x: 2 efficiency: 0.8",
       "x: 2",
       {"points[1]: efficiency is 0; it must be more than 0"}},
      {"no points",
       kKernels,
       "decode_attention { points { x: 1 efficiency: 0.9 } }",
       "",
       {"decode_attention: points is empty"}},
      {"negative overhead",
       kKernels,
       "gpu: \"card\"",
       "gpu: \"card\" step_overhead_us: -1",
       {"step_overhead_us is -1; it must be at least 0 and finite"}},
      {"overhead that is no number",
       kKernels,
       "x: 2 efficiency: 0.8",
       "x: 2 efficiency: nan",
       {"gemms[0] points[1]: efficiency is nan"}},
      {"no elementwise efficiency",
       kKernels,
       "elementwise_efficiency: 0.5",
       "",
       {"elementwise_efficiency is 0"}},
      {"message sizes out of order",
       kNccl,
       "bytes: 2",
       "bytes: 1",
       {"NCCL calibration nccl: sends[0]: points[1]: bytes is 1 after 1; sort"}},
      {"no rate fraction",
       kNccl,
       "host_staging_gb_s: 6",
       "host_staging_gb_s: 6 collectives { path: PATH_KIND_NVLINK }",
       {"collectives[0]: rate_fraction is 0"}},
      {"no staging rate", kNccl, "host_staging_gb_s: 6", "", {"host_staging_gb_s is 0"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    std::string text = c.text;
    const std::size_t at = text.find(c.from);
    ASSERT_NE(at, std::string::npos) << "the text lacks: " << c.from;
    text.replace(at, c.from.size(), c.to);
    SpecLibrary library;
    const absl::Status status = library.AddText("f.txtpb", text);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("f.txtpb:"));
    for (const std::string& said : c.said) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(said));
    }
  }
}

constexpr char kProcessor[] = R"(# proto-message: fabricast.GpuSpec
name: "cores"
memory_gb: 8 memory_bandwidth_gb_s: 40 bf16_tflops: 0.3 activation_bytes: 4 processor: true
calibration: "h200_sxm"
sources { fields: ["memory_gb", "memory_bandwidth_gb_s", "bf16_tflops", "activation_bytes",
                   "processor"] reference: "sheet" }
)";

TEST(SpecLibraryTest, AProcessorHasNoPcie) {
  SpecLibrary library;
  EXPECT_TRUE(library.AddText("p.txtpb", kProcessor).ok());
  SpecLibrary card;
  EXPECT_THAT(
      std::string(card.AddText("p.txtpb", absl::StrReplaceAll(kProcessor, {{"processor: true",
                                                                            "processor: false"}}))
                      .message()),
      HasSubstr("pcie_generation, pcie_lanes, gpudirect_rdma, pcie_peer_to_peer are "
                "missing"));
  for (const char* field : {"pcie_generation: 5", "pcie_lanes: 16", "gpudirect_rdma: true",
                            "pcie_peer_to_peer: true", "nvlink_gb_s: 450"}) {
    const std::string name = std::string(field).substr(0, std::string(field).find(':'));
    SpecLibrary fresh;
    const std::string text = absl::StrCat(
        absl::StrReplaceAll(kProcessor,
                            {{"processor: true", absl::StrCat("processor: true ", field)}}),
        "sources { fields: \"", name, "\" reference: \"sheet\" }");
    EXPECT_THAT(std::string(fresh.AddText("p.txtpb", text).message()),
                HasSubstr(absl::StrCat("p.txtpb: GPU spec cores: ", name, " is given")));
  }
}

}  // namespace
}  // namespace fabricast
