#include "runtime/weights/json_events.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Writes down what it is told.
class Recorder : public JsonHandler {
 public:
  absl::Status Begin(const Path& path, bool is_object) override {
    return Record(absl::StrCat(absl::StrJoin(path, "/"), is_object ? " {" : " ["));
  }
  absl::Status End(const Path& path) override {
    return Record(absl::StrCat(absl::StrJoin(path, "/"), " end"));
  }
  absl::Status Scalar(const Path& path, const JsonScalar& scalar) override {
    return Record(absl::StrCat(absl::StrJoin(path, "/"), " = ", ScalarText(scalar)));
  }

  std::vector<std::string> events;
  std::string refused;  // an event that is an error

 private:
  absl::Status Record(std::string event) {
    events.push_back(event);
    return event == refused ? absl::OutOfRangeError(event) : absl::OkStatus();
  }
};

absl::Status Read(absl::string_view text) {
  Recorder recorder;
  return ReadJson("x.json", text, "mend it", recorder);
}

TEST(JsonEventsTest, ValuesComeWithThePathThatLeadsToThem) {
  Recorder recorder;
  ASSERT_TRUE(
      ReadJson("x.json", R"({"a": {"b": [1, -2]}, "c": "d", "e": null})", "", recorder).ok());
  EXPECT_THAT(recorder.events, ElementsAre(" {", "a {", "a/b [", "a/b/ = 1", "a/b/ = -2", "a/b end",
                                           "a end", "c = \"d\"", "e = null", " end"));
}

TEST(JsonEventsTest, OnlyWholeNumbersOfSixtyThreeBitsAreWhole) {
  Recorder recorder;
  ASSERT_TRUE(
      ReadJson("x.json", "[9223372036854775807, 9223372036854775808, 1.0, true]", "", recorder)
          .ok());
  EXPECT_THAT(recorder.events, ElementsAre(" [", " = 9223372036854775807", " = 9.22337e+18", " = 1",
                                           " = true", " end"));
}

TEST(JsonEventsTest, TheHandlersFirstErrorEndsTheReading) {
  Recorder recorder;
  recorder.refused = "a = 1";
  EXPECT_EQ(ReadJson("x.json", R"({"a": 1, "b": 2, )", "mend it", recorder),
            absl::OutOfRangeError("a = 1"));
  EXPECT_THAT(recorder.events, ElementsAre(" {", "a = 1"));
}

TEST(JsonEventsTest, WhatIsNotJsonIsRefusedWithThePlace) {
  for (absl::string_view text : {"", "{", "{\"a\": 1", "{\"a\" 1}", "{\"a\": NaN}", "[1e999]",
                                 "{\"\xff\": 1}", "[1] 2", "\"a"}) {
    const absl::Status status = Read(text);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), ::testing::StartsWith("x.json: not JSON: "));
    EXPECT_THAT(std::string(status.message()), ::testing::EndsWith(": mend it"));
  }
  EXPECT_THAT(std::string(Read("{\"a\" 1}").message()), HasSubstr("line 1, column 6"));
}

TEST(JsonEventsTest, AKeyIsUniqueInItsObjectAlone) {
  EXPECT_TRUE(Read(R"({"a": {"a": 1}, "b": {"a": 1}})").ok());
  EXPECT_EQ(Read(R"({"b": {"a": 1, "c": {}, "a": 1}})"),
            absl::InvalidArgumentError("x.json: a: twice the same key: mend it"));
}

TEST(JsonEventsTest, SixtyFourLevelsAreRead) {
  EXPECT_TRUE(Read(std::string(64, '[') + std::string(64, ']')).ok());
  EXPECT_EQ(Read(std::string(65, '[') + std::string(65, ']')),
            absl::InvalidArgumentError("x.json: nested more than 64 deep: mend it"));
  EXPECT_FALSE(Read(std::string(1'000'000, '[')).ok());
}

TEST(JsonEventsTest, LongOrStrangeTextIsShownShortenedAndEscaped) {
  EXPECT_EQ(Shown("model.norm"), "model.norm");
  EXPECT_EQ(Shown("\x1b[2J\n"), "\\x1b[2J\\n");
  EXPECT_EQ(Shown(std::string(161, 'a')), std::string(160, 'a') + "...");
}

TEST(JsonEventsTest, LongNumbersHaveCommas) {
  EXPECT_EQ(WithCommas(0), "0");
  EXPECT_EQ(WithCommas(999), "999");
  EXPECT_EQ(WithCommas(1000), "1,000");
  EXPECT_EQ(WithCommas(uint64_t{1} << 60), "1,152,921,504,606,846,976");
}

}  // namespace
}  // namespace fabricast
