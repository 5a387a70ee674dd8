#include "topology/override.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

Cluster MakeCluster() {
  Cluster cluster;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(R"(
    hosts { name: "node_a" spec: "h"
            gpus { name: "gpu0" spec: "g" } gpus { name: "gpu1" spec: "g" }
            nics { name: "nic0" spec: "n" } }
    hosts { name: "node_b" spec: "h"
            gpus { name: "gpu0" spec: "g" } nics { name: "nic0" spec: "n" } }
    switches { name: "switch0" spec: "s" }
    links { a: "node_a.nic0" b: "switch0.qsfpdd1" }
    links { name: "long-cable.2" a: "node_b.nic0" b: "switch0.qsfpdd2" }
    links { a: "node_a.nic1" b: "node_b.nic0" }
  )",
                                                            &cluster));
  return cluster;
}

Cluster Applied(const std::vector<Override>& overrides) {
  Cluster cluster = MakeCluster();
  const absl::Status status = ApplyOverrides("c.txtpb", overrides, &cluster);
  EXPECT_TRUE(status.ok()) << status;
  return cluster;
}

std::string Refused(const std::string& path, const std::string& value) {
  Cluster cluster = MakeCluster();
  const absl::Status status = ApplyOverrides("c.txtpb", {{.path = path, .value = value}}, &cluster);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << path << "=" << value;
  return std::string(status.message());
}

TEST(ParseOverrideTest, SplitsAtTheFirstEquals) {
  const absl::StatusOr<Override> parsed = ParseOverride(" a.nic0.rate_gbps = 400 ");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->path, "a.nic0.rate_gbps");
  EXPECT_EQ(parsed->value, "400");
  EXPECT_EQ(ParseOverride("a.spec=x=y")->value, "x=y");
}

TEST(ApplyOverridesTest, ReordersThePipeline) {
  Cluster cluster = MakeCluster();
  cluster.add_ranks("b.gpu0");
  const absl::Status status =
      ApplyOverrides("c.txtpb", {{.path = "cluster.ranks", .value = "b.gpu0  a.gpu0"}}, &cluster);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(cluster.ranks_size(), 2);
  EXPECT_EQ(cluster.ranks(0), "b.gpu0");
  EXPECT_EQ(cluster.ranks(1), "a.gpu0");
  EXPECT_THAT(Refused("cluster.hosts", "a"), HasSubstr("has no field \"hosts\""));
}

TEST(ParseOverrideTest, SaysWhatIsMissing) {
  EXPECT_THAT(std::string(ParseOverride("a.nic0.rate_gbps").status().message()),
              HasSubstr("has no '='; write object.field=value"));
  EXPECT_THAT(std::string(ParseOverride("rate_gbps=400").status().message()),
              HasSubstr("must be \"object.field\""));
  EXPECT_THAT(std::string(ParseOverride("a.nic0.rate_gbps=").status().message()),
              HasSubstr("has no value"));
}

TEST(OverrideTest, AFieldOfTheSpecGoesIntoTheInstancesOverride) {
  const Cluster cluster = Applied({{.path = "node_a.nic0.rate_gbps", .value = "400"}});
  EXPECT_EQ(cluster.hosts(0).nics(0).override().rate_gbps(), 400);
  EXPECT_FALSE(cluster.hosts(1).nics(0).has_override());
}

TEST(OverrideTest, AFieldOfTheInstanceIsSetThere) {
  const Cluster cluster = Applied({{.path = "node_a.gpu0.spec", .value = "h200_sxm"},
                                   {.path = "node_b.gpudirect_driver", .value = "false"}});
  EXPECT_EQ(cluster.hosts(0).gpus(0).spec(), "h200_sxm");
  EXPECT_TRUE(cluster.hosts(1).has_gpudirect_driver());
  EXPECT_FALSE(cluster.hosts(1).gpudirect_driver());
}

TEST(OverrideTest, AWildcardStaysBetweenDots) {
  const Cluster cluster = Applied({{.path = "*.gpu*.memory_gb", .value = "48"},
                                   {.path = "node_*.nic0.rate_gbps", .value = "100"}});
  EXPECT_EQ(cluster.hosts(0).gpus(0).override().memory_gb(), 48);
  EXPECT_EQ(cluster.hosts(0).gpus(1).override().memory_gb(), 48);
  EXPECT_EQ(cluster.hosts(1).gpus(0).override().memory_gb(), 48);
  EXPECT_EQ(cluster.hosts(0).nics(0).override().rate_gbps(), 100);
  EXPECT_EQ(cluster.hosts(1).nics(0).override().rate_gbps(), 100);
  // The cable node_a.nic1--node_b.nic0 ends in ".nic0" and is none of them.
  EXPECT_FALSE(cluster.links(2).has_rate_gbps());
}

TEST(OverrideTest, ObjectsWithoutTheFieldAreLeftAlone) {
  // "node_a.*" are GPUs and a NIC: only the NIC has a rate.
  const Cluster cluster = Applied({{.path = "node_a.*.rate_gbps", .value = "100"}});
  EXPECT_EQ(cluster.hosts(0).nics(0).override().rate_gbps(), 100);
  EXPECT_FALSE(cluster.hosts(0).gpus(0).has_override());
}

TEST(OverrideTest, CablesGoByTheirNames) {
  const Cluster cluster =
      Applied({{.path = "node_a.nic0--switch0.qsfpdd1.rate_gbps", .value = "100"},
               {.path = "long-cable.2.latency_ns", .value = "500"}});
  EXPECT_EQ(cluster.links(0).rate_gbps(), 100);
  EXPECT_FALSE(cluster.links(1).has_rate_gbps());
  EXPECT_EQ(cluster.links(1).latency_ns(), 500);
}

TEST(OverrideTest, AWildcardWithTwoDashesMatchesCablesAcrossDots) {
  const Cluster cluster = Applied({{.path = "*--switch0*.latency_ns", .value = "250"}});
  EXPECT_EQ(cluster.links(0).latency_ns(), 250);
  EXPECT_FALSE(cluster.links(1).has_latency_ns());  // has a name of its own
  EXPECT_FALSE(cluster.links(2).has_latency_ns());
}

TEST(OverrideTest, HostsAndSwitchesTakeScalarsOfTheirSpecs) {
  const Cluster cluster = Applied({{.path = "switch0.latency_ns", .value = "425"},
                                   {.path = "node_a.memory_bandwidth_gb_s", .value = "1e2"}});
  EXPECT_EQ(cluster.switches(0).override().latency_ns(), 425);
  EXPECT_EQ(cluster.hosts(0).override().memory_bandwidth_gb_s(), 100);
}

TEST(OverrideTest, EnumsGoByTheirWholeOrTheirShortName) {
  EXPECT_EQ(Applied({{.path = "communication.transport", .value = "TRANSPORT_TCP"}})
                .communication()
                .transport(),
            TRANSPORT_TCP);
  EXPECT_EQ(
      Applied({{.path = "communication.gdr_level", .value = "phb"}}).communication().gdr_level(),
      PCIE_DISTANCE_PHB);
}

TEST(OverrideTest, TheLastOneCounts) {
  const Cluster cluster = Applied({{.path = "*.nic0.rate_gbps", .value = "100"},
                                   {.path = "node_b.nic0.rate_gbps", .value = "200"}});
  EXPECT_EQ(cluster.hosts(0).nics(0).override().rate_gbps(), 100);
  EXPECT_EQ(cluster.hosts(1).nics(0).override().rate_gbps(), 200);
}

struct Case {
  std::string path;
  std::string value;
  std::string said;
};

TEST(OverrideTest, WhatDoesNotFitIsRefusedWithWhatThereIs) {
  const std::vector<Case> cases = {
      {"node_c.nic0.rate_gbps", "1",
       "nothing is called \"node_c.nic0\"; did you mean \"node_a.nic0\"?"},
      {"node_*.nic7.rate_gbps", "1", "nothing is called \"node_*.nic7\""},
      {"node_a.nic0.rate", "1",
       "node_a.nic0 has no field \"rate\" that can be set; did you mean "
       "\"rate_gbps\"? There are: "},
      {"node_a.nic0.memory_gb", "1", "has no field \"memory_gb\" that can be set"},
      {"node_a.nic0.name", "x", "has no field \"name\" that can be set"},
      {"node_a.nic0.override", "x", "has no field \"override\" that can be set"},
      {"node_a.nic0.sources", "x", "has no field \"sources\" that can be set"},
      {"switch0.ports", "x", "has no field \"ports\" that can be set"},
      {"node_a.nic0.rate_gbps", "fast", "node_a.nic0: rate_gbps takes a number, not \"fast\""},
      {"node_a.nic0.rate_gbps", "200 400", "rate_gbps takes a number, not \"200 400\""},
      {"node_a.nic0.rate_gbps", "", "rate_gbps takes a number"},
      {"node_a.nic0.roce_mtu_bytes", "1.5", "roce_mtu_bytes takes a whole number"},
      {"node_a.nic0.roce_mtu_bytes", "99999999999", "roce_mtu_bytes takes a whole number"},
      {"node_a.gpudirect_driver", "maybe", "gpudirect_driver takes true or false"},
      {"communication.transport", "RDMA",
       "transport takes one of TRANSPORT_NCCL_RDMA, TRANSPORT_TCP, not \"RDMA\""},
      {"rate_gbps", "1", "the path must be \"object.field\""},
      {"node_a.", "1", "the path must be \"object.field\""},
      {".rate_gbps", "1", "the path must be \"object.field\""},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.path + "=" + c.value);
    const std::string said = Refused(c.path, c.value);
    EXPECT_THAT(said, HasSubstr("c.txtpb: override " + c.path + "=" + c.value + ": "));
    EXPECT_THAT(said, HasSubstr(c.said));
  }
}

}  // namespace
}  // namespace fabricast
