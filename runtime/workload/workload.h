// Which requests arrive when, and how long they are.
//
// A workload is read or drawn once, up front; the same specification and seed give the same
// requests on every machine (Boost.Random's distributions, whose results do not depend on the
// compiler).
#ifndef FABRICAST_RUNTIME_WORKLOAD_WORKLOAD_H_
#define FABRICAST_RUNTIME_WORKLOAD_WORKLOAD_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/workload/request.h"

namespace fabricast {

struct Workload {
  std::string name;  // as given or as in the catalogue
  // One line for reports: "closed loop, 8 at a time, 64 requests, 512 in, 128 out".
  std::string description;
  // > 0: closed loop, this many requests at a time. 0: open loop, `requests` sorted by arrival.
  int concurrency = 0;
  std::vector<Request> requests;      // at least one
  std::vector<std::string> warnings;  // "x.csv: 3 rows out of order: sorted (first: line 17)"
};

struct WorkloadOptions {
  uint64_t seed = 1;
  double rate_scale = 1;  // > 1: arrivals come faster; open loop only
  // Keep only arrivals in [start, end) of the unscaled workload, re-based to 0; open loop only.
  double window_start_s = 0;
  double window_end_s = 1e18;
  int64_t max_requests = 0;  // 0: all; else the first so many, after the window
};

// `spec` is one of
//   chat-closed-8                                             a name of the catalogue
//   closed:concurrency=8,requests=64,input=512,output=128
//   poisson:rate=2,requests=200,input=512,output=128          rate: requests a second
//   gamma:rate=2,cv=2,requests=200,input=512,output=128       cv: of the gaps (1: Poisson)
//   FILE.csv, azure:FILE                                      columns of Azure's traces
//   FILE.jsonl, jsonl:FILE                                    one object a line
//
// cv is the coefficient of variation: standard deviation / mean. Azure's columns are
// TIMESTAMP,ContextTokens,GeneratedTokens; a line of JSONL is {"arrival_s": 0.5, "prompt_tokens":
// 512, "output_tokens": 128} or, as Mooncake has it, "timestamp" (ms), "input_length",
// "output_length".
//
// Lengths are N (fixed), uniform(LO;HI), lognormal(MEDIAN;SIGMA;MAX) or exponential(MEAN;MAX),
// whole tokens of at least 1: values drawn are rounded and clamped to [1, MAX]. The first request
// of poisson and gamma arrives at 0; arrivals, inputs and outputs are drawn from streams of their
// own, so that another rate leaves the lengths as they were.
//
// Azure's arrivals count from the earliest row (times are exact to 1 ns, UTC), JSONL's are taken as
// they are. Bad rows (wrong number of fields, not a number, negative, missing, more than 10 million
// tokens) are an error that lists up to 5 line numbers with their cause and the count of the rest.
// Rows with 0 tokens in or out are left out, and rows out of order are sorted, each with a warning.
// At least 1 and at most 10 million requests; files of at most 2 GiB.
//
// kNotFound: neither in the catalogue, nor of these forms, nor a file. kInvalidArgument, naming key
// or line and the mend: everything else, such as a window in which nothing arrives, or a window or
// rate_scale for a closed loop.
absl::StatusOr<Workload> MakeWorkload(absl::string_view spec, const WorkloadOptions& options = {});

struct WorkloadName {
  std::string name;
  std::string spec;  // what it stands for
  std::string description;
};
// The catalogue, sorted by name.
const std::vector<WorkloadName>& WorkloadCatalogue();

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WORKLOAD_WORKLOAD_H_
