// What Perfetto is given: a document of trace events, read back.
#include "runtime/metrics/timeline.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Json = nlohmann::json;

std::string TempFile(const std::string& name) { return ::testing::TempDir() + "/" + name; }

std::vector<Json> WriteAndRead(const Timeline& timeline, const TrackNames& names) {
  const std::string file = TempFile("trace.json");
  const absl::Status status = WriteTrace(timeline, names, file);
  EXPECT_TRUE(status.ok()) << status;
  std::ifstream in(file);
  const Json document = Json::parse(in);
  EXPECT_EQ(document.at("displayTimeUnit"), "ms");
  return document.at("traceEvents").get<std::vector<Json>>();
}

std::vector<Json> WithPhase(const std::vector<Json>& events, const std::string& phase) {
  std::vector<Json> found;
  for (const Json& event : events) {
    if (event.at("ph") == phase) found.push_back(event);
  }
  return found;
}

TrackNames TwoStages() {
  return {.stages = {"stage 0: node_a.gpu0", "stage 1: node_b.gpu0"},
          .links = {"node_a.nic0 tx", "node_b.nic0 rx", "node_b.nic0 tx"},
          .hops = {{.from_stage = 0, .to_stage = 1, .links = {0, 1}},
                   {.from_stage = 1, .to_stage = 0, .links = {2}}}};
}

TEST(WriteTraceTest, EveryStageAndLinkHasATrack) {
  std::map<std::pair<int, int>, std::string> tracks;
  std::map<int, std::string> processes;
  for (const Json& event : WithPhase(WriteAndRead({}, TwoStages()), "M")) {
    const std::string name = event.at("args").at("name");
    if (event.at("name") == "process_name") {
      processes[event.at("pid")] = name;
    } else {
      EXPECT_EQ(event.at("name"), "thread_name");
      EXPECT_TRUE(tracks.emplace(std::pair(event.at("pid"), event.at("tid")), name).second);
    }
  }
  ASSERT_THAT(processes, SizeIs(2));
  std::map<std::string, std::vector<std::string>> of_process;
  for (const auto& [place, name] : tracks) of_process[processes[place.first]].push_back(name);
  EXPECT_THAT(of_process["stages"], ElementsAre("stage 0: node_a.gpu0", "stage 1: node_b.gpu0"));
  EXPECT_THAT(of_process["links"],
              ElementsAre("node_a.nic0 tx", "node_b.nic0 rx", "node_b.nic0 tx"));
}

TEST(WriteTraceTest, StagesAreSlicesInMicroseconds) {
  Timeline timeline;
  timeline.stages = {
      {.stage = 1,
       .micro_batch = 7,
       .start_s = 1.5,
       .end_s = 1.75,
       .decodes = 3,
       .prefill_tokens = 512},
      {.stage = 0, .micro_batch = 8, .start_s = 2, .end_s = 2, .decodes = 4, .prefill_tokens = 0},
      {.stage = 0, .micro_batch = 9, .start_s = 2, .end_s = 3, .decodes = 0, .prefill_tokens = 64}};
  const std::vector<Json> slices = WithPhase(WriteAndRead(timeline, TwoStages()), "X");
  ASSERT_THAT(slices, SizeIs(3));
  EXPECT_EQ(slices[0].at("name"), "prefill 512 + decode x3");
  EXPECT_EQ(slices[0].at("tid"), 1);
  EXPECT_EQ(slices[0].at("ts"), 1.5e6);
  EXPECT_EQ(slices[0].at("dur"), 0.25e6);
  EXPECT_EQ(slices[0].at("args").at("micro_batch"), 7);
  EXPECT_EQ(slices[0].at("args").at("decodes"), 3);
  EXPECT_EQ(slices[0].at("args").at("prefill_tokens"), 512);
  EXPECT_EQ(slices[1].at("name"), "decode x4");
  EXPECT_EQ(slices[1].at("dur"), 0);
  EXPECT_EQ(slices[2].at("name"), "prefill 64");
}

TEST(WriteTraceTest, ATransferIsOnTheTrackOfEveryLinkOfItsHop) {
  Timeline timeline;
  timeline.transfers = {
      {.from_stage = 0, .to_stage = 1, .micro_batch = 7, .start_s = 1, .end_s = 3, .bytes = 4096},
      {.from_stage = 1, .to_stage = 0, .micro_batch = 7, .start_s = 5, .end_s = 6, .bytes = 4}};
  const std::vector<Json> slices = WithPhase(WriteAndRead(timeline, TwoStages()), "X");
  ASSERT_THAT(slices, SizeIs(2 + 1));
  EXPECT_EQ(slices[0].at("name"), "mb 7: stage 0 to 1");
  EXPECT_EQ(slices[0].at("tid"), 0);
  EXPECT_EQ(slices[0].at("ts"), 1e6);
  EXPECT_EQ(slices[0].at("dur"), 2e6);
  EXPECT_EQ(slices[0].at("args").at("bytes"), 4096);
  EXPECT_EQ(slices[1].at("tid"), 1);
  EXPECT_EQ(slices[2].at("name"), "mb 7: stage 1 to 0");
  EXPECT_EQ(slices[2].at("tid"), 2);
  EXPECT_EQ(slices[2].at("dur"), 1e6);
}

TEST(WriteTraceTest, HopsThatShareALinkHaveATrackEach) {
  TrackNames names;
  names.links = {"uplink"};
  names.hops = {{.from_stage = 0, .to_stage = 1, .links = {0}},
                {.from_stage = 1, .to_stage = 2, .links = {0}}};
  Timeline timeline;
  timeline.transfers = {
      {.from_stage = 0, .to_stage = 1, .micro_batch = 1, .start_s = 1, .end_s = 3, .bytes = 1},
      {.from_stage = 1, .to_stage = 2, .micro_batch = 0, .start_s = 2, .end_s = 4, .bytes = 1}};
  const std::vector<Json> events = WriteAndRead(timeline, names);
  std::vector<std::string> tracks;
  for (const Json& event : events) {
    if (event.at("name") == "thread_name") tracks.push_back(event.at("args").at("name"));
  }
  EXPECT_THAT(tracks, ElementsAre("uplink (stage 0 to 1)", "uplink (stage 1 to 2)"));
  const std::vector<Json> slices = WithPhase(events, "X");
  ASSERT_THAT(slices, SizeIs(2));
  EXPECT_NE(slices[0].at("tid"), slices[1].at("tid"));
}

TEST(WriteTraceTest, LoadIsTwoCounters) {
  Timeline timeline;
  timeline.load = {{.at_s = 1, .waiting = 2, .running = 3, .kv_blocks = 400}};
  const std::vector<Json> counters = WithPhase(WriteAndRead(timeline, TwoStages()), "C");
  ASSERT_THAT(counters, SizeIs(2));
  EXPECT_EQ(counters[0].at("name"), "requests");
  EXPECT_EQ(counters[0].at("ts"), 1e6);
  EXPECT_EQ(counters[0].at("args"), Json({{"running", 3}, {"waiting", 2}}));
  EXPECT_EQ(counters[1].at("name"), "KV blocks");
  EXPECT_EQ(counters[1].at("args"), Json({{"used", 400}}));
}

TEST(WriteTraceTest, NothingHappenedIsADocumentToo) {
  const std::vector<Json> events = WriteAndRead({}, {});
  EXPECT_THAT(events, SizeIs(2));  // the names of the two processes
  EXPECT_THAT(WithPhase(events, "X"), IsEmpty());
}

TEST(WriteTraceTest, NamesWithQuotesOrWithoutUtf8DoNotBreakTheDocument) {
  TrackNames names;
  names.stages = {"stage \"0\"\n\\", "stage \xff"};
  std::vector<std::string> read;
  for (const Json& event : WriteAndRead({}, names)) {
    if (event.at("name") == "thread_name") read.push_back(event.at("args").at("name"));
  }
  EXPECT_THAT(read, ElementsAre("stage \"0\"\n\\", "stage \xEF\xBF\xBD"));
}

TEST(WriteTraceTest, AFileThatCannotBeWrittenIsNamed) {
  const std::string file = TempFile("no_such_folder") + "/trace.json";
  const absl::Status status = WriteTrace({}, {}, file);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(file));
  EXPECT_FALSE(std::filesystem::exists(file));
}

TEST(WriteTraceTest, AFullDiskIsAnError) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full on this system";
  const absl::Status status = WriteTrace({}, TwoStages(), "/dev/full");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/dev/full"));
}

}  // namespace
}  // namespace fabricast
