// What happened when, for a viewer: Chrome's trace-event format, which Perfetto (ui.perfetto.dev)
// opens.
#ifndef FABRICAST_RUNTIME_METRICS_TIMELINE_H_
#define FABRICAST_RUNTIME_METRICS_TIMELINE_H_

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace fabricast {

struct StageSlice {
  int stage;
  int64_t micro_batch;
  double start_s;
  double end_s;
  int64_t decodes;
  int64_t prefill_tokens;
};

inline constexpr int64_t kBytesUnknown = -1;

struct TransferSlice {
  int from_stage;
  int to_stage;
  int64_t micro_batch;
  double start_s;
  double end_s;
  int64_t bytes;
};

struct LoadSample {
  double at_s;
  int64_t waiting;
  int64_t running;
  int64_t kv_blocks;
};

struct Timeline {
  std::vector<StageSlice> stages;
  std::vector<TransferSlice> transfers;
  std::vector<LoadSample> load;
};

// Names of the tracks: one a stage, then one a link, or one for each hop where several hops share a
// link. `hops` says which links a transfer crosses. Transfers of one hop do not overlap.
struct TrackNames {
  struct Hop {
    int from_stage;
    int to_stage;
    std::vector<int> links;  // indices into `links`
  };
  std::vector<std::string> stages;
  std::vector<std::string> links;
  std::vector<Hop> hops;
};

// Writes `timeline` to `file`; kUnavailable naming the file if it cannot (all of it) be written.
absl::Status WriteTrace(const Timeline& timeline, const TrackNames& names, const std::string& file);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_METRICS_TIMELINE_H_
