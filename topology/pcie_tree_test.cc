#include "topology/pcie_tree.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

HostSpec Parse(const std::string& text) {
  HostSpec spec;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &spec));
  return spec;
}

// Processor rc0 with a chain of switches top - low and a second one, side; processor rc1.
//
//   rc0 - top - low - s0, s1          rc1 - s5
//           \    \ s2 (on top)
//       - side - s3
//       - s4
HostSpec TwoProcessors() {
  return Parse(R"(
    root_complexes { name: "rc0" } root_complexes { name: "rc1" }
    pcie_switches { name: "low" upstream: "top" }
    pcie_switches { name: "top" upstream: "rc0" }
    pcie_switches { name: "side" upstream: "rc0" }
    slots { name: "s0" upstream: "low" } slots { name: "s1" upstream: "low" }
    slots { name: "s2" upstream: "top" } slots { name: "s3" upstream: "side" }
    slots { name: "s4" upstream: "rc0" } slots { name: "s5" upstream: "rc1" }
  )");
}
constexpr int kLow = 0, kTop = 1, kSide = 2;

PcieTree MakeTree() {
  absl::StatusOr<PcieTree> tree = PcieTree::Create("f", "host", TwoProcessors());
  EXPECT_TRUE(tree.ok()) << tree.status();
  return *std::move(tree);
}

TEST(PcieTreeTest, DistancesAreNccls) {
  const PcieTree tree = MakeTree();
  EXPECT_EQ(tree.Between(0, 1).distance, PCIE_DISTANCE_PIX);  // one switch
  EXPECT_EQ(tree.Between(0, 2).distance, PCIE_DISTANCE_PXB);  // two, no root complex
  EXPECT_EQ(tree.Between(0, 3).distance, PCIE_DISTANCE_PHB);  // by the root complex
  EXPECT_EQ(tree.Between(3, 4).distance, PCIE_DISTANCE_PHB);
  EXPECT_EQ(tree.Between(0, 5).distance, PCIE_DISTANCE_SYS);  // between processors
}

TEST(PcieTreeTest, APathHasOnlyTheUplinksItCrosses) {
  const PcieTree tree = MakeTree();
  const PcieTree::Path below_one_switch = tree.Between(0, 1);
  EXPECT_THAT(below_one_switch.up, IsEmpty());
  EXPECT_THAT(below_one_switch.down, IsEmpty());
  EXPECT_FALSE(below_one_switch.through_root);

  const PcieTree::Path to_the_switch_above = tree.Between(0, 2);
  EXPECT_THAT(to_the_switch_above.up, ElementsAre(kLow));
  EXPECT_THAT(to_the_switch_above.down, IsEmpty());
  EXPECT_FALSE(to_the_switch_above.through_root);

  const PcieTree::Path over_the_root = tree.Between(0, 3);
  EXPECT_THAT(over_the_root.up, ElementsAre(kLow, kTop));
  EXPECT_THAT(over_the_root.down, ElementsAre(kSide));
  EXPECT_TRUE(over_the_root.through_root);
  EXPECT_EQ(over_the_root.from_root, over_the_root.to_root);

  const PcieTree::Path back = tree.Between(3, 0);
  EXPECT_THAT(back.up, ElementsAre(kSide));
  EXPECT_THAT(back.down, ElementsAre(kTop, kLow));

  const PcieTree::Path between_processors = tree.Between(5, 0);
  EXPECT_THAT(between_processors.up, IsEmpty());
  EXPECT_THAT(between_processors.down, ElementsAre(kTop, kLow));
  EXPECT_EQ(between_processors.from_root, 1);
  EXPECT_EQ(between_processors.to_root, 0);
}

TEST(PcieTreeTest, HostMemoryIsAtTheRoot) {
  const PcieTree tree = MakeTree();
  EXPECT_THAT(tree.ToRoot(0).up, ElementsAre(kLow, kTop));
  EXPECT_THAT(tree.FromRoot(0).down, ElementsAre(kTop, kLow));
  EXPECT_FALSE(tree.ToRoot(0).through_root);
  EXPECT_EQ(tree.ToRoot(5).to_root, 1);
}

struct Case {
  std::string spec;
  std::string said;
};

TEST(PcieTreeTest, WhatIsNoTreeIsRefusedWithTheMend) {
  const std::string root = "root_complexes { name: \"rc0\" } ";
  const std::vector<Case> cases = {
      {"", "f: host: no root_complexes; add root_complexes {"},
      {root + "pcie_switches { name: \"a\" upstream: \"b\" } pcie_switches { name: \"b\" "
              "upstream: \"a\" }",
       "PCIe switch a: no root complex within 16 upstreams: they form a cycle"},
      {root + "pcie_switches { name: \"a\" upstream: \"a\" }", "form a cycle"},
      {root + "slots { name: \"s\" upstream: \"rc1\" }",
       "slot s: upstream \"rc1\" is no root complex or PCIe switch"},
      {root + "slots { name: \"s\" }", "slot s: upstream is missing"},
      {root + "slots { name: \"s\" upstream: \"rc0\" } slots { name: \"s\" upstream: \"rc0\" }",
       "\"s\" names both a slot and a slot"},
      {root + "pcie_switches { name: \"rc0\" upstream: \"rc0\" }",
       "\"rc0\" names both a root complex and a PCIe switch"},
      {root + "slots { upstream: \"rc0\" }", "slot: name is missing"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.spec);
    const absl::StatusOr<PcieTree> tree = PcieTree::Create("f", "host", Parse(c.spec));
    ASSERT_FALSE(tree.ok());
    EXPECT_EQ(tree.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(tree.status().message()), HasSubstr(c.said));
  }
}

}  // namespace
}  // namespace fabricast
