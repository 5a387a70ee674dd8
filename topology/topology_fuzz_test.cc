// Any text either is refused with a message or makes a topology whose routes are whole.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/string_view.h"
#include "topology/topology.h"

namespace {

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::abort();
}

void CheckRoutes(const fabricast::Topology& topology) {
  const int count = static_cast<int>(topology.gpus().size());
  const int segments = static_cast<int>(topology.segments().size());
  Require(count > 0, "there are GPUs");
  for (int from = 0; from < count && from < 4; ++from) {
    for (int to = 0; to < count && to < 32; ++to) {
      if (from == to) continue;
      const fabricast::Route& route = topology.route(from, to);
      Require(!route.segments.empty(), "a route has segments");
      Require(route.payload_bytes_per_s > 0, "a route has a rate");
      Require(route.gpudirect == route.gpudirect_reason.empty(),
              "GPUDirect that is off has a reason");
      for (const int segment : route.segments) {
        Require(segment >= 0 && segment < segments, "a route's segments exist");
        const fabricast::Segment& s = topology.segments()[segment];
        Require(s.payload_bytes_per_s >= route.payload_bytes_per_s,
                "no segment is slower than the bottleneck");
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<fabricast::Topology> topology =
      fabricast::Topology::Parse("fuzz.txtpb", text);
  if (!topology.ok()) {
    Require(!topology.status().message().empty(), "an error says something");
    return 0;
  }
  CheckRoutes(*topology);
  CheckRoutes(topology->WithNetworkRate(400));
  Require(topology->network_rate_gbps() >= 0, "the network's rate is no less than 0");
  return 0;
}
