// Any EventLog is refused, or read as a run whose critical paths end.
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "runtime/metrics/critical_path.h"
#include "runtime/metrics/event_log.h"
#include "runtime/metrics/testing.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using fabricast::EventLog;
  const std::string text(reinterpret_cast<const char*>(data), size);
  (void)fabricast::ReadEvents(text, 1);
  // Mutations hardly make a gzipped log: they are also what is packed.
  EventLog log;
  log.ParsePartialFromString(text);
  const int stages = log.generations_size() > 0 ? log.generations(0).stages_size() : 1;
  const absl::StatusOr<fabricast::RunEvents> run =
      fabricast::ReadEvents(fabricast::Pack(log), stages);
  if (!run.ok()) {
    if (!absl::IsInvalidArgument(run.status())) abort();
    return 0;
  }
  if (run->times.size() != run->steps.size() * stages) abort();
  for (const fabricast::RequestPath& path : fabricast::ExplainRequests(*run)) {
    if (!std::isfinite(path.ttft_s) || !std::isfinite(path.tpot_s)) abort();
  }
  return 0;
}
