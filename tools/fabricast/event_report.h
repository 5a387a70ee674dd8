// Two runs, event by event, as text.
#ifndef FABRICAST_TOOLS_FABRICAST_EVENT_REPORT_H_
#define FABRICAST_TOOLS_FABRICAST_EVENT_REPORT_H_

#include <ostream>
#include <string>

#include "runtime/metrics/result.pb.h"

namespace fabricast {

// How far both decided the same, how long each kind of event took in either, and which of them make
// the difference of their latencies. Kinds that matter little are left out of the table and summed
// up in what latencies are made of.
void PrintEvents(const std::string& first_label, const EventComparison& events, std::ostream& out);

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_EVENT_REPORT_H_
