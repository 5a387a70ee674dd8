#include "runtime/metrics/timeline.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fabricast {
namespace {

using Json = nlohmann::ordered_json;

// Stages and links are two processes of the viewer, each with a thread a track.
constexpr int kStages = 1;
constexpr int kLinks = 2;

double Microseconds(double seconds) { return seconds * 1e6; }

Json Name(absl::string_view what, int process, int thread, const std::string& name) {
  return {{"ph", "M"},
          {"name", std::string(what)},
          {"pid", process},
          {"tid", thread},
          {"args", {{"name", name}}}};
}

std::string SliceName(const StageSlice& slice) {
  if (slice.prefill_tokens == 0) return absl::StrCat("decode x", slice.decodes);
  if (slice.decodes == 0) return absl::StrCat("prefill ", slice.prefill_tokens);
  return absl::StrCat("prefill ", slice.prefill_tokens, " + decode x", slice.decodes);
}

}  // namespace

absl::Status WriteTrace(const Timeline& timeline, const TrackNames& names,
                        const std::string& file) {
  std::ofstream out(file, std::ios::binary);
  bool first = true;
  // One event a line, written as it is made: a trace of an hour never stands in memory as a
  // document.
  const auto write = [&](const Json& event) {
    out << (first ? "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n" : ",\n")
        // Names that are not UTF-8 get replacement characters instead of an exception.
        << event.dump(-1, ' ', false, Json::error_handler_t::replace);
    first = false;
  };
  write(Name("process_name", kStages, 0, "stages"));
  for (size_t i = 0; i < names.stages.size(); ++i) {
    write(Name("thread_name", kStages, static_cast<int>(i), names.stages[i]));
  }
  write(Name("process_name", kLinks, 0, "links"));
  // A track for each link and hop over it, links in order: transfers of one hop follow each other,
  // those of two may overlap, and slices of one track must not.
  std::map<std::pair<size_t, int>, int> lane;  // hop, link -> track
  for (int link = 0; link < static_cast<int>(names.links.size()); ++link) {
    const auto over = [&](const TrackNames::Hop& hop) {
      return std::find(hop.links.begin(), hop.links.end(), link) != hop.links.end();
    };
    const bool shared = std::count_if(names.hops.begin(), names.hops.end(), over) > 1;
    for (size_t h = 0; h < names.hops.size(); ++h) {
      const TrackNames::Hop& hop = names.hops[h];
      if (!over(hop)) continue;
      const int track = static_cast<int>(lane.size());
      lane[{h, link}] = track;
      write(Name("thread_name", kLinks, track,
                 shared ? absl::StrCat(names.links[link], " (stage ", hop.from_stage, " to ",
                                       hop.to_stage, ")")
                        : names.links[link]));
    }
  }
  for (const StageSlice& slice : timeline.stages) {
    write({{"ph", "X"},
           {"name", SliceName(slice)},
           {"pid", kStages},
           {"tid", slice.stage},
           {"ts", Microseconds(slice.start_s)},
           {"dur", Microseconds(slice.end_s - slice.start_s)},
           {"args",
            {{"micro_batch", slice.micro_batch},
             {"decodes", slice.decodes},
             {"prefill_tokens", slice.prefill_tokens}}}});
  }
  for (const TransferSlice& slice : timeline.transfers) {
    for (size_t h = 0; h < names.hops.size(); ++h) {
      const TrackNames::Hop& hop = names.hops[h];
      if (hop.from_stage != slice.from_stage || hop.to_stage != slice.to_stage) continue;
      for (int link : hop.links) {
        write({{"ph", "X"},
               {"name", absl::StrCat("mb ", slice.micro_batch, ": stage ", slice.from_stage, " to ",
                                     slice.to_stage)},
               {"pid", kLinks},
               {"tid", lane.at({h, link})},
               {"ts", Microseconds(slice.start_s)},
               {"dur", Microseconds(slice.end_s - slice.start_s)},
               {"args",
                slice.bytes == kBytesUnknown ? Json::object() : Json{{"bytes", slice.bytes}}}});
      }
    }
  }
  for (const LoadSample& sample : timeline.load) {
    write({{"ph", "C"},
           {"name", "requests"},
           {"pid", kStages},
           {"ts", Microseconds(sample.at_s)},
           {"args", {{"running", sample.running}, {"waiting", sample.waiting}}}});
    write({{"ph", "C"},
           {"name", "KV blocks"},
           {"pid", kStages},
           {"ts", Microseconds(sample.at_s)},
           {"args", {{"used", sample.kv_blocks}}}});
  }
  out << "\n]}\n";
  out.close();
  if (!out) {
    return absl::UnavailableError(
        absl::StrCat(file,
                     ": the trace could not be written; is the folder there, is there "
                     "space and permission?"));
  }
  return absl::OkStatus();
}

}  // namespace fabricast
