#include "topology/nearest_name.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(EditDistanceTest, CountsInsertionsDeletionsSubstitutionsAndSwaps) {
  EXPECT_EQ(EditDistance("", ""), 0u);
  EXPECT_EQ(EditDistance("", "abc"), 3u);
  EXPECT_EQ(EditDistance("nic0", "nic"), 1u);
  EXPECT_EQ(EditDistance("nic0", "nic1"), 1u);
  EXPECT_EQ(EditDistance("nci0", "nic0"), 1u);
  EXPECT_EQ(EditDistance("NIC0", "nic0"), 0u);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3u);
}

TEST(EditDistanceTest, LooksAtNoMoreThan64Characters) {
  const std::string a(1'000'000, 'a');
  EXPECT_EQ(EditDistance(a, std::string(1'000'000, 'b')), 64u);
}

TEST(NearestNameTest, FindsTheClosestAndNothingFar) {
  const std::vector<std::string> known = {"h100_sxm", "h200_sxm", "rtx_5090"};
  EXPECT_EQ(NearestName("h20_sxm", known), "h200_sxm");
  EXPECT_EQ(NearestName("RTX5090", known), "rtx_5090");
  EXPECT_EQ(NearestName("mi300x", known), "");
  // Part of one: closer than its edit distance says.
  EXPECT_EQ(NearestName("5090", known), "rtx_5090");
  EXPECT_EQ(NearestName("", known), "");
}

TEST(SuggestTest, ListsWhatThereIs) {
  EXPECT_EQ(Suggest("nic", {"nic0", "gpu0"}), "; did you mean \"nic0\"? There are: nic0, gpu0");
  EXPECT_EQ(Suggest("x", {"nic0"}), "; there are: nic0");
  EXPECT_EQ(Suggest("x", {}), "; there are none");
}

TEST(SuggestTest, CutsLongLists) {
  std::vector<std::string> known;
  for (int i = 0; i < 128; ++i) known.push_back(absl::StrCat("node", i));
  const std::string text = Suggest("switch", known);
  EXPECT_THAT(text, StartsWith("; there are: node0, "));
  EXPECT_THAT(text, EndsWith("node19 and 108 more"));
}

}  // namespace
}  // namespace fabricast
