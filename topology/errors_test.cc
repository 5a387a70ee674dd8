// Every mistake that can be made in a cluster, and what is said about it.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/embed/embedded_file.h"
#include "topology/spec_files.h"
#include "topology/topology.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Two hosts, one switch; sound. Cases break it by replacing a piece.
constexpr char kSound[] = R"(
name: "pair"
hosts {
  name: "a"
  spec: "trinity_host_a"
  gpus { name: "gpu0" spec: "rtx_pro_6000_blackwell_workstation" slot: "slot1" }
  gpus { name: "gpu1" spec: "h200_sxm" slot: "slot2" }
  nics { name: "nic0" spec: "connectx6_200g" slot: "slot3" }
}
hosts {
  name: "b"
  spec: "trinity_host_b"
  gpus { name: "gpu0" spec: "rtx_5090" slot: "slot1" }
  nics { name: "nic0" spec: "connectx6_200g" slot: "slot3" }
}
switches { name: "sw" spec: "mikrotik_crs812" }
links { a: "a.nic0" b: "sw.qsfpdd1" }
links { a: "b.nic0" b: "sw.qsfpdd2" }
ranks: ["a.gpu0", "a.gpu1", "b.gpu0"]
)";

struct Case {
  std::string what;
  std::string from;  // a piece of kSound ...
  std::string to;    // ... and what it becomes
  std::vector<std::string> said;
};

void ExpectSaid(const absl::Status& status, const std::vector<std::string>& said) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("c.txtpb"));
  for (const std::string& text : said) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
}

TEST(ErrorsTest, TheTextThatCasesBreakIsSound) {
  const absl::StatusOr<Topology> topology = Topology::Parse("c.txtpb", kSound);
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_THAT(topology->warnings(), IsEmpty());
}

TEST(ErrorsTest, EveryMistakeNamesFileObjectFieldAndMend) {
  const std::string host_b_nic =
      "nics { name: \"nic0\" spec: \"connectx6_200g\" slot: \"slot3\" }\n}\nswitches";
  const std::vector<Case> cases = {
      // The text.
      {"unknown field",
       "spec: \"rtx_5090\"",
       "specification: \"rtx_5090\"",
       {"c.txtpb:13:36: Gpu has no field \"specification\"", "did you mean \"spec\"?",
        "name, spec, slot, override"}},
      {"not a textproto", "switches {", "switches [", {"c.txtpb:16:"}},
      {"number as text",
       "slot: \"slot3\" }\n}\nhosts",
       "slot: \"slot3\" override { rate_gbps: \"fast\" } }\n}\nhosts",
       {"c.txtpb:8:", "fast"}},
      {"field twice",
       "name: \"pair\"",
       "name: \"pair\" name: \"again\"",
       {"c.txtpb:2:", "specified multiple times"}},
      {"another message",
       "\nname: \"pair\"",
       "# proto-message: fabricast.GpuSpec\nname: \"pair\"",
       {"c.txtpb:1:", "the file is a fabricast.GpuSpec", "fabricast.Cluster is expected"}},
      {"escaped bytes",
       "name: \"pair\"",
       "name: \"pair\" description: \"\\377\"",
       {"description is \"\\xff\"", "readable text"}},
      {"escaped control character", "name: \"sw\"", "name: \"sw\\033[31m\"", {"readable text"}},

      // Names.
      {"no cluster name", "name: \"pair\"", "", {"cluster: name is missing"}},
      {"dot in a name",
       "name: \"gpu1\"",
       "name: \"gpu.1\"",
       {"a: gpus: name is \"gpu.1\"", "letters, digits"}},
      {"host twice", "name: \"b\"", "name: \"a\"", {"a: name is used twice, by a host and a host"}},
      {"host and switch of one name",
       "name: \"sw\"",
       "name: \"b\"",
       {"b: name is used twice, by a host and a switch", "rename one"}},
      {"GPU twice", "name: \"gpu1\"", "name: \"gpu0\"", {"a.gpu0: name is used twice"}},
      {"GPU and NIC of one name",
       "name: \"gpu1\"",
       "name: \"nic0\"",
       {"a.nic0: name is used twice"}},
      {"link twice",
       "links { a: \"b.nic0\"",
       "links { name: \"a.nic0--sw.qsfpdd1\" a: \"b.nic0\"",
       {"link a.nic0--sw.qsfpdd1: name is used twice"}},

      // What names refer to.
      {"unknown GPU spec",
       "\"rtx_5090\"",
       "\"rtx5090\"",
       {"b.gpu0: no GPU spec \"rtx5090\"", "did you mean \"rtx_5090\"?", "h200_sxm"}},
      {"no GPU spec", "spec: \"rtx_5090\"", "", {"b.gpu0: spec is missing", "rtx_5090"}},
      {"slot of a processor",
       "spec: \"rtx_5090\" slot",
       "spec: \"cpu_x86\" slot",
       {"b.gpu0: slot is \"slot1\", and cpu_x86 is a processor, which has none", "leave it out"}},
      {"processor by override",
       "slot: \"slot2\"",
       "slot: \"slot2\" override { processor: true }",
       {"a.gpu1: override cannot set processor"}},
      {"bytes of activations",
       "slot: \"slot2\"",
       "slot: \"slot2\" override { activation_bytes: 3 }",
       {"a.gpu1 override: activation_bytes is 3; it is one of 2, 4"}},
      {"unknown host spec",
       "trinity_host_b",
       "trinity_host_c",
       {"b: no host spec \"trinity_host_c\"", "did you mean \"trinity_host_"}},
      {"unknown NIC spec",
       "connectx6_200g\" slot: \"slot3\" }\n}\nhosts",
       "connectx_200g\" slot: \"slot3\" }\n}\nhosts",
       {"a.nic0: no NIC spec \"connectx_200g\"", "did you mean \"connectx6_200g\"?"}},
      {"unknown switch spec",
       "mikrotik_crs812",
       "crs812",
       {"sw: no switch spec \"crs812\"", "did you mean \"mikrotik_crs812\"?"}},
      {"unknown kernel calibration",
       "slot: \"slot2\"",
       "slot: \"slot2\" override { calibration: \"h200\" }",
       {"a.gpu1: no kernel calibration \"h200\"", "did you mean \"h200_sxm\"?"}},
      {"unknown NCCL calibration",
       "ranks:",
       "communication { calibration: \"nccl_2_29\" } ranks:",
       {"communication: no NCCL calibration \"nccl_2_29\"", "did you mean \"nccl_2_28\"?"}},
      {"link to an unknown host",
       "a: \"b.nic0\"",
       "a: \"c.nic0\"",
       {"link c.nic0--sw.qsfpdd2: a: no host or switch \"c\"", "there are: a, b, sw"}},
      {"link to an unknown NIC",
       "a: \"b.nic0\"",
       "a: \"b.nic1\"",
       {"a: host b has no NIC \"nic1\"", "did you mean \"b.nic0\"?"}},
      {"link to a GPU", "a: \"b.nic0\"", "a: \"b.gpu0\"", {"host b has no NIC \"gpu0\""}},
      {"port out of range",
       "sw.qsfpdd2",
       "sw.qsfpdd3",
       {"b: switch sw (mikrotik_crs812) has no port \"qsfpdd3\"",
        "qsfpdd1 ... qsfpdd2, qsfp1 ... qsfp2, sfp1 ... sfp8"}},
      {"port zero", "sw.qsfpdd2", "sw.qsfpdd0", {"has no port \"qsfpdd0\""}},
      {"port with leading zeros", "sw.qsfpdd2", "sw.qsfpdd02", {"has no port \"qsfpdd02\""}},
      {"end without a port",
       "sw.qsfpdd2",
       "sw",
       {"link b.nic0--sw: b is \"sw\"", "write \"host.nic\" or \"switch.port\""}},
      {"end missing", "a: \"b.nic0\"", "", {"a is \"\""}},
      {"unknown rank",
       "\"b.gpu0\"]",
       "\"b.gpu1\"]",
       {"ranks[2]: no GPU \"b.gpu1\"", "did you mean \"a.gpu1\"?"}},
      {"unknown GPU in an NVLink domain",
       "switches {",
       "hosts { name: \"n\" spec: \"hgx_sxm\" nvlink_domains { name: \"d\" gpus: \"gpu9\" } }\n"
       "switches {",
       {"n.d: gpus: n has no GPU \"gpu9\"", "there are none"}},

      // Slots.
      {"GPU on no slot",
       "\"rtx_5090\" slot: \"slot1\"",
       "\"rtx_5090\"",
       {"b.gpu0: slot is missing", "slot1, slot2"}},
      {"unknown slot",
       "slot: \"slot2\"",
       "slot: \"slot22\"",
       {"a.gpu1: host spec trinity_host_a has no slot \"slot22\"", "did you mean \"slot2\"?"}},
      {"slot used twice",
       "slot: \"slot2\"",
       "slot: \"slot1\"",
       {"a.gpu1: slot slot1 is taken by a.gpu0", "free slot2, slot3, slot4"}},
      {"slot used by GPU and NIC",
       "slot: \"slot2\"",
       "slot: \"slot3\"",
       {"a.nic0: slot slot3 is taken by a.gpu1"}},

      // Cables.
      {"port cabled twice",
       "sw.qsfpdd2",
       "sw.qsfpdd1",
       {"link b.nic0--sw.qsfpdd1: sw.qsfpdd1 is cabled already, by link a.nic0--sw.qsfpdd1"}},
      {"NIC cabled twice", "a: \"b.nic0\"", "a: \"a.nic0\"", {"a.nic0 is cabled already"}},
      {"cable to itself", "b: \"sw.qsfpdd2\"", "b: \"b.nic0\"", {"b.nic0 is cabled to itself"}},
      {"hosts without a path",
       "links { a: \"b.nic0\" b: \"sw.qsfpdd2\" }",
       "",
       {"a.gpu0 cannot reach b.gpu0", "no cables lead from a to b", "leave the GPU out of ranks"}},
      {"host without a NIC", host_b_nic, "}\nswitches", {"host b has no NIC"}},

      // Ranks.
      {"rank twice", "\"b.gpu0\"]", "\"a.gpu0\"]", {"ranks[2]: a.gpu0 is ranks[0] already"}},
      {"GPU in two NVLink domains",
       "nics { name: \"nic0\" spec: \"connectx6_200g\" slot: \"slot3\" }\n}\nhosts",
       "nics { name: \"nic0\" spec: \"connectx6_200g\" slot: \"slot3\" }\n"
       "nvlink_domains { name: \"d\" gpus: \"gpu1\" } nvlink_domains { name: \"e\" gpus: \"gpu1\" "
       "}\n}\nhosts",
       {"a.e: gpus: a.gpu1 is already in NVLink domain d"}},
      {"NVLink of a GPU that has none",
       "gpus { name: \"gpu1\"",
       "nvlink_domains { name: \"d\" gpus: \"gpu0\" } gpus { name: \"gpu1\"",
       {"a.d: gpus: a.gpu0 has no NVLink"}},

      // Numbers.
      {"rate of zero",
       "b: \"sw.qsfpdd2\"",
       "b: \"sw.qsfpdd2\" rate_gbps: 0",
       {"link b.nic0--sw.qsfpdd2: rate_gbps is 0", "more than 0 and at most 10000"}},
      {"negative rate",
       "b: \"sw.qsfpdd2\"",
       "b: \"sw.qsfpdd2\" rate_gbps: -200",
       {"rate_gbps is -200", "more than 0"}},
      {"rate that is not a number",
       "b: \"sw.qsfpdd2\"",
       "b: \"sw.qsfpdd2\" rate_gbps: nan",
       {"rate_gbps is nan"}},
      {"infinite rate",
       "b: \"sw.qsfpdd2\"",
       "b: \"sw.qsfpdd2\" rate_gbps: inf",
       {"rate_gbps is inf"}},
      {"rate in the wrong unit",
       "b: \"sw.qsfpdd2\"",
       "b: \"sw.qsfpdd2\" rate_gbps: 200e3",
       {"rate_gbps is 200000", "at most 10000"}},
      {"negative latency",
       "b: \"sw.qsfpdd2\"",
       "b: \"sw.qsfpdd2\" latency_ns: -1",
       {"latency_ns is -1", "at least 0"}},
      {"overridden rate of zero",
       "slot: \"slot2\"",
       "slot: \"slot2\" override { memory_gb: 0 }",
       {"a.gpu1 override: memory_gb is 0"}},
      {"odd MTU",
       "slot: \"slot3\" }\n}\nhosts",
       "slot: \"slot3\" override { roce_mtu_bytes: 1500 } }\n}\nhosts",
       {"a.nic0 override: roce_mtu_bytes is 1500", "256, 512, 1024, 2048, 4096"}},
      {"odd lanes",
       "slot: \"slot2\"",
       "slot: \"slot2\" override { pcie_lanes: 12 }",
       {"pcie_lanes is 12; it is one of 1, 2, 4, 8, 16"}},
      {"PCIe generation that does not exist",
       "slot: \"slot2\"",
       "slot: \"slot2\" override { pcie_generation: 7 }",
       {"pcie_generation is 7", "at most 6"}},
      {"more than all of the compute",
       "slot: \"slot2\"",
       "slot: \"slot2\" override { sustained_compute_fraction: 1.5 }",
       {"sustained_compute_fraction is 1.5", "at most 1"}},
      {"chunk of zero",
       "ranks:",
       "communication { p2p_net_chunk_bytes: 0 } ranks:",
       {"communication: p2p_net_chunk_bytes is 0"}},
      {"unknown transport",
       "ranks:",
       "communication { transport: 7 } ranks:",
       {"communication: transport is 7", "TRANSPORT_TCP"}},
      {"unknown distance",
       "ranks:",
       "communication { gdr_level: 9 } ranks:",
       {"communication: gdr_level is 9"}},

      // Overrides that are none.
      {"renaming by override",
       "slot: \"slot2\"",
       "slot: \"slot2\" override { name: \"x\" }",
       {"a.gpu1: override cannot set name"}},
      {"ports by override",
       "spec: \"mikrotik_crs812\"",
       "spec: \"mikrotik_crs812\" override { ports { prefix: \"p\" count: 1 rate_gbps: 1 } }",
       {"sw: override cannot set ports", "write a SwitchSpec of its own"}},
      {"slots by override",
       "spec: \"trinity_host_b\"",
       "spec: \"trinity_host_b\" override { slots { name: \"s\" } }",
       {"b: override cannot set slots"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    std::string text = kSound;
    const std::size_t at = text.find(c.from);
    ASSERT_NE(at, std::string::npos) << "kSound lacks: " << c.from;
    text.replace(at, c.from.size(), c.to);
    const absl::StatusOr<Topology> topology = Topology::Parse("c.txtpb", text);
    ASSERT_FALSE(topology.ok());
    ExpectSaid(topology.status(), c.said);
  }
}

TEST(ErrorsTest, AnAddressIsAnIpAddress) {
  const auto with = [](const std::string& address) {
    return Topology::Parse("c.txtpb",
                           absl::StrReplaceAll(kSound, {{"name: \"b\"", "name: \"b\" address: \"" +
                                                                            address + "\""}}))
        .status();
  };
  EXPECT_TRUE(with("10.0.0.2").ok()) << with("10.0.0.2");
  EXPECT_TRUE(with("fd00::2").ok());
  for (const char* const wrong : {"host-b", "10.0.0", "10.0.0.2:80", "[fd00::2]"}) {
    ExpectSaid(with(wrong), {"b: address \"", wrong, "is not an IP address; give"});
  }
}

TEST(ErrorsTest, AClusterWithoutGpusIsRefused) {
  ExpectSaid(Topology::Parse("c.txtpb", "name: \"x\"").status(),
             {"cluster x: no GPUs; add hosts {"});
  ExpectSaid(
      Topology::Parse("c.txtpb", "name: \"x\" hosts { name: \"a\" spec: \"hgx_sxm\" }").status(),
      {"no GPUs"});
}

TEST(ErrorsTest, WhatIsNoTextIsNamedForWhatItIs) {
  ExpectSaid(Topology::Parse("c.txtpb", "").status(), {"c.txtpb: empty"});
  ExpectSaid(Topology::Parse("c.txtpb", " \n\t\n").status(), {"c.txtpb: empty"});
  ExpectSaid(Topology::Parse("c.txtpb", absl::string_view("name\0: 1", 8)).status(),
             {"binary: a NUL byte at byte 4"});
  ExpectSaid(Topology::Parse("c.txtpb", "name: \"\xC3(\"").status(),
             {"binary: invalid UTF-8 at byte 7"});
}

TEST(ErrorsTest, AHundredMegabytesOfNoiseAreRefusedUnread) {
  const std::string noise(100'000'000, '\xFF');
  // By its size: the first byte would already be an error.
  ExpectSaid(Topology::Parse("c.txtpb", noise).status(), {"too large: 100000000 bytes"});
}

TEST(ErrorsTest, DeepNestingIsAnErrorAndNoStackOverflow) {
  std::string text = "name: \"x\" ";
  for (int i = 0; i < 100'000; ++i) text += "hosts { ";
  EXPECT_FALSE(Topology::Parse("c.txtpb", text).ok());
}

// Files and folders below the test's own.
class FilesTest : public ::testing::Test {
 protected:
  FilesTest()
      : folder_(absl::StrCat(::testing::TempDir(), "/",
                             ::testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(folder_);
  }

  std::string Write(const std::string& name, const std::string& text) {
    const std::filesystem::path path = std::filesystem::path(folder_) / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path.string();
  }

  const std::string folder_;
};

TEST_F(FilesTest, AFileIsReadAndNamed) {
  const std::string file = Write("clusters/mine.txtpb", kSound);
  const absl::StatusOr<Topology> topology = Topology::Load(file);
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_EQ(topology->name(), "pair");
}

TEST_F(FilesTest, AMissingFileListsWhatIsBuiltIn) {
  const absl::Status status = Topology::Load(folder_ + "/trinity_200.txtpb").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("trinity_200.txtpb: No such file"),
                    HasSubstr("did you mean \"trinity_200g\"?"), HasSubstr("leaf_spine_16")));
  EXPECT_THAT(std::string(Topology::Load("trinity_800g").status().message()),
              HasSubstr("did you mean \"trinity_200g\"?"));
  EXPECT_EQ(Topology::Load("").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(FilesTest, ADirectoryIsNamedAsOne) {
  const absl::Status status = Topology::Load(::testing::TempDir()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("is a directory"));
}

TEST_F(FilesTest, AHugeFileIsRefusedByItsSize) {
  const std::string file = Write("huge.txtpb", std::string(5 << 20, '#'));
  EXPECT_THAT(std::string(Topology::Load(file).status().message()),
              HasSubstr("too large: 5242880 bytes"));
}

TEST_F(FilesTest, AnEndlessFileIsReadNoFurtherThanAllowed) {
  EXPECT_THAT(std::string(Topology::Load("/dev/zero").status().message()),
              HasSubstr("too large: more than"));
}

constexpr char kMyNic[] = R"(# proto-message: fabricast.NicSpec
name: "my_nic"
rate_gbps: 100 pcie_generation: 3 pcie_lanes: 16 latency_us: 1
roce_mtu_bytes: 1024 ethernet_mtu_bytes: 1500 rdma: true
sources {
  fields: ["rate_gbps", "pcie_generation", "pcie_lanes", "latency_us", "roce_mtu_bytes",
           "ethernet_mtu_bytes", "rdma"]
  reference: "measured"
}
)";

TEST_F(FilesTest, SpecsBesideTheClusterAreAdded) {
  Write("specs/nics/my_nic.txtpb", kMyNic);
  const std::string file =
      Write("clusters/mine.txtpb", absl::StrReplaceAll(kSound, {{"connectx6_200g", "my_nic"}}));
  const absl::StatusOr<Topology> topology = Topology::Load(file);
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_EQ(topology->network_rate_gbps(), 100);
}

TEST_F(FilesTest, ACopyOfASpecThatIsBuiltInIsLeftOut) {
  // As when topology/clusters/*.txtpb is loaded from the source tree.
  for (const EmbeddedFile& spec : SpecFiles()) {
    Write(std::string(spec.path.substr(spec.path.find('/') + 1)), std::string(spec.contents));
  }
  ASSERT_TRUE(std::filesystem::exists(folder_ + "/specs/nics/connectx6_200g.txtpb"));
  ASSERT_TRUE(std::filesystem::exists(folder_ + "/calibration/nccl_2_28.txtpb"));
  const absl::StatusOr<Topology> topology = Topology::Load(Write("clusters/mine.txtpb", kSound));
  EXPECT_TRUE(topology.ok()) << topology.status();
}

TEST_F(FilesTest, ASpecThatDiffersFromTheOneBuiltInNamesBothFiles) {
  Write("specs/my_nic.txtpb", absl::StrReplaceAll(kMyNic, {{"my_nic", "connectx6_200g"}}));
  const std::string file = Write("clusters/mine.txtpb", kSound);
  const absl::Status status = Topology::Load(file).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("specs/my_nic.txtpb: NicSpec \"connectx6_200g\" is also in "),
                    HasSubstr("topology/specs/nics/connectx6_200g.txtpb")));
}

TEST_F(FilesTest, AnErrorInASpecBesideTheClusterNamesTheSpecsFile) {
  Write("specs/my_nic.txtpb", absl::StrReplaceAll(kMyNic, {{"\"latency_us\", ", ""}}));
  const std::string file = Write("clusters/mine.txtpb", kSound);
  EXPECT_THAT(std::string(Topology::Load(file).status().message()),
              AllOf(HasSubstr("specs/my_nic.txtpb: NIC spec my_nic"),
                    HasSubstr("no source for latency_us; add sources {")));
}

struct WarningCase {
  std::string what;
  std::string from;
  std::string to;
  std::string said;
};

TEST(WarningsTest, WhatIsAllowedButSurprisingIsSaid) {
  const std::vector<WarningCase> cases = {
      // 16e9 x 128/130 x 8 / 8 x 256/280 = 14.4 GB/s = 115 Gbps.
      {"NIC in a narrow slot", "spec: \"trinity_host_b\"", "spec: \"narrow\"",
       "c.txtpb: b.nic0: PCIe 4.0 x8 (card 4.0 x16, slot slot3 5.0 x8) carries 115 of its 200 "
       "Gbps"},
      {"link faster than its end", "b: \"sw.qsfpdd2\"", "b: \"sw.qsfpdd2\" rate_gbps: 400",
       "c.txtpb: link b.nic0--sw.qsfpdd2: rate_gbps is 400, but b.nic0 has 200: 200 is used"},
      {"NIC without a cable", "nics { name: \"nic0\"",
       "nics { name: \"nic1\" spec: \"connectx6_200g\" slot: \"slot4\" } nics { name: \"nic0\"",
       "c.txtpb: a.nic1: no link leads to it: unused"},
      {"path MTUs that differ", "slot: \"slot3\" }\n}\nhosts",
       "slot: \"slot3\" override { roce_mtu_bytes: 1024 } }\n}\nhosts",
       "c.txtpb: a.nic0: roce_mtu_bytes 1024 is the least of the cluster and used for all of it"},
      // 32e9 x 128/130 x 16 / 8 = 63.0; generation 4: half.
      {"GPU in a slow slot", "spec: \"trinity_host_b\"", "spec: \"slow\"",
       "c.txtpb: b.gpu0: slot slot1 gives it PCIe 4.0 x16 of PCIe 5.0 x16: 31.5 of 63.0 GB/s"},
  };
  SpecLibrary specs = SpecLibrary::Bundled();
  for (const auto& [name, slot1, slot3] :
       {std::tuple("narrow", "generation: 5 lanes: 16", "generation: 5 lanes: 8"),
        std::tuple("slow", "generation: 4 lanes: 16", "generation: 4 lanes: 16")}) {
    const absl::Status status = specs.AddText(
        absl::StrCat(name, ".txtpb"),
        absl::StrCat("# proto-message: fabricast.HostSpec\nname: \"", name,
                     "\" root_complexes { name: \"rc0\" } slots { name: \"slot1\" upstream: "
                     "\"rc0\" ",
                     slot1, " } slots { name: \"slot3\" upstream: \"rc0\" ", slot3,
                     " } memory_bandwidth_gb_s: 100 sources { fields: [\"generation\", "
                     "\"lanes\", \"memory_bandwidth_gb_s\"] reference: \"test\" }"));
    ASSERT_TRUE(status.ok()) << status;
  }
  for (const WarningCase& c : cases) {
    SCOPED_TRACE(c.what);
    std::string text = kSound;
    const std::size_t at = text.find(c.from);
    ASSERT_NE(at, std::string::npos);
    text.replace(at, c.from.size(), c.to);
    const absl::StatusOr<Topology> topology = Topology::Parse("c.txtpb", text, {}, specs);
    ASSERT_TRUE(topology.ok()) << topology.status();
    EXPECT_THAT(topology->warnings(), ElementsAre(c.said));
  }
}

}  // namespace
}  // namespace fabricast
