// Edits of sound clusters by words, which get past the parser more often than those by bytes: names
// that dangle, cables and slots that are taken, numbers that do not fit, hosts that lose their NIC.
//
// An input is a list of edits of four bytes: which cluster's word (two bytes), what happens to it,
// which word it meets.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "topology/topology.h"

namespace {

constexpr std::size_t kMaxEdits = 32;

std::vector<std::string> Words(absl::string_view text) {
  // The first line is a comment to the end of its line; the others go too.
  std::vector<std::string> words;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (!line.empty() && line[0] == '#') continue;
    for (const absl::string_view word : absl::StrSplit(line, ' ', absl::SkipEmpty())) {
      words.emplace_back(word);
    }
  }
  return words;
}

// The clusters that are edited: small ones, of which every word matters.
const std::vector<std::vector<std::string>>& Clusters() {
  static const auto& clusters = *new std::vector<std::vector<std::string>>{
      Words(fabricast::Topology::BundledText("trinity_200g")),
      Words(fabricast::Topology::BundledText("h200_x4")),
      Words(fabricast::Topology::BundledText("rtx_pro_6000_x8"))};
  return clusters;
}

const std::vector<std::string>& Strangers() {
  static const auto& strangers = *new std::vector<std::string>{
      "0",           "-1",         "nan",           "1e300",       "4096",
      "{",           "}",          "\"\"",          "rate_gbps:",  "lanes:",
      "nics",        "links",      "override",      "\"h20\"",     "\"l40s\"",
      "\"slot2\"",   "\"nic3\"",   "ranks:",        "\"hgx_sxm\"", "\"gpu0\"",
      "gdr_level:",  "transport:", "TRANSPORT_TCP", "count:",      "\"switch0.sfp1\"",
      "pcie_lanes:", "rdma:",      "false"};
  return strangers;
}

std::string Edited(const std::uint8_t* data, std::size_t size) {
  std::vector<std::string> words = Clusters()[size == 0 ? 0 : data[0] % Clusters().size()];
  for (std::size_t i = 1; i + 4 <= size && i < 4 * kMaxEdits; i += 4) {
    if (words.empty()) break;
    const std::size_t at = (data[i] * 256u + data[i + 1]) % words.size();
    const std::string other = data[i + 3] % 2 == 0
                                  ? Strangers()[data[i + 3] / 2 % Strangers().size()]
                                  : words[data[i + 3] % words.size()];
    switch (data[i + 2] % 4) {
      case 0:
        words.erase(words.begin() + at);
        break;
      case 1:
        words[at] = other;
        break;
      case 2:
        words.insert(words.begin() + at, other);
        break;
      default: {
        // A piece twice: from one word to another.
        const std::size_t to = std::min(words.size(), at + data[i + 3] % 40u);
        const std::vector<std::string> piece(words.begin() + at, words.begin() + to);
        words.insert(words.begin() + to, piece.begin(), piece.end());
      }
    }
  }
  return absl::StrJoin(words, " ");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text = Edited(data, size);
  const absl::StatusOr<fabricast::Topology> topology =
      fabricast::Topology::Parse("fuzz.txtpb", text);
  if (!topology.ok()) return 0;
  const int count = static_cast<int>(topology->gpus().size());
  for (int to = 1; to < count; ++to) {
    for (const fabricast::Route* route : {&topology->route(0, to), &topology->route(to, 0)}) {
      if (!route->segments.empty() && route->payload_bytes_per_s > 0 && route->latency_s >= 0 &&
          route->gpudirect == route->gpudirect_reason.empty()) {
        continue;
      }
      std::fprintf(stderr, "a route is not whole: GPU 0 and %d of\n%s\n", to, text.c_str());
      std::abort();
    }
  }
  return 0;
}
