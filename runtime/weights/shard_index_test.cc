#include "runtime/weights/shard_index.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Error(absl::string_view json) {
  const auto entries = ParseShardIndex("x.json", json);
  if (entries.ok()) return "";
  EXPECT_EQ(entries.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(entries.status().message()), StartsWith("x.json: "));
  EXPECT_THAT(std::string(entries.status().message()),
              EndsWith(": give an index of Hugging Face, or download it again"));
  return std::string(entries.status().message());
}

TEST(ShardIndexTest, TheWeightMapIsRead) {
  const auto entries = ParseShardIndex("x.json", R"({"metadata": {"total_size": 8, "x": [1]},
                    "weight_map": {"b": "2.safetensors", "a": "1.safetensors"}})");
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 2u);
  EXPECT_EQ((*entries)[0].tensor, "b");
  EXPECT_EQ((*entries)[0].shard, "2.safetensors");
  EXPECT_EQ((*entries)[1].tensor, "a");
  EXPECT_EQ((*entries)[1].shard, "1.safetensors");
}

TEST(ShardIndexTest, AShardIsAFileBesideTheIndex) {
  for (absl::string_view name :
       {"../x", "/etc/passwd", "a/b", "..", ".", "", "a\\\\b", "a\\u0000b"}) {
    EXPECT_THAT(Error(absl::StrCat(R"({"weight_map": {"a": ")", name, "\"}}")),
                HasSubstr("instead of a file beside the index"))
        << name;
  }
  EXPECT_EQ(Error(R"({"weight_map": {"a": "..x"}})"), "");
  EXPECT_THAT(Error(R"({"weight_map": {"a": "../x"}})"), HasSubstr("a: is in \"../x\" instead"));
}

TEST(ShardIndexTest, WhatIsNoIndexIsRefused) {
  EXPECT_THAT(Error(""), HasSubstr("not JSON"));
  EXPECT_THAT(Error("[]"), HasSubstr("is [...] instead of an object"));
  EXPECT_THAT(Error("3"), HasSubstr("is 3 and no object"));
  EXPECT_THAT(Error("{}"), HasSubstr("weight_map: lists no tensors"));
  EXPECT_THAT(Error(R"({"weight_map": {}})"), HasSubstr("weight_map: lists no tensors"));
  EXPECT_THAT(Error(R"({"weight_map": 3})"), HasSubstr("weight_map: is 3 instead of an object"));
  EXPECT_THAT(Error(R"({"weight_map": ["a"]})"), HasSubstr("weight_map: is [...] instead of an"));
  EXPECT_THAT(Error(R"({"weight_map": {"a": 3}})"), HasSubstr("a: is in 3 instead"));
  EXPECT_THAT(Error(R"({"weight_map": {"a": ["b"]}})"), HasSubstr("a: is in [...] instead"));
  EXPECT_THAT(Error(R"({"weight_map": {"a": "b", "a": "c"}})"), HasSubstr("a: twice the same"));
}

}  // namespace
}  // namespace fabricast
