// Requests from recorded traces.
#ifndef FABRICAST_RUNTIME_WORKLOAD_TRACE_H_
#define FABRICAST_RUNTIME_WORKLOAD_TRACE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/workload/request.h"

namespace fabricast {

struct Trace {
  std::vector<Request> requests;  // sorted by arrival, at least one
  std::vector<std::string> warnings;
};

// The text of an Azure trace: a line TIMESTAMP,ContextTokens,GeneratedTokens, then one request a
// line. Arrivals count from the earliest request. Lines end in LF or CRLF, the last may lack it,
// empty lines and a byte-order mark are skipped; fields are not quoted. `file` is for messages.
// Errors and warnings: see MakeWorkload.
absl::StatusOr<Trace> ParseAzureCsv(absl::string_view file, absl::string_view text);

// One JSON object a line: arrival_s (seconds) or timestamp (milliseconds), prompt_tokens or
// input_length, output_tokens or output_length; other fields are ignored. Arrivals are taken as
// they are.
absl::StatusOr<Trace> ParseJsonl(absl::string_view file, absl::string_view text);

// The text of `path`. kNotFound, or kInvalidArgument if it is not a regular file or over 2 GiB.
absl::StatusOr<std::string> ReadTraceFile(absl::string_view path);

// Collects the rows of a trace, good and bad, for both formats.
class TraceBuilder {
 public:
  explicit TraceBuilder(absl::string_view file) : file_(file) {}

  // Adds a request, unless it has no tokens to read or to write: no server can run it, so it is
  // left out with a warning. Token counts are within [0, kMaxTokens].
  void Add(int64_t line, const Request& request);
  void AddBadRow(int64_t line, absl::string_view cause);

  absl::StatusOr<Trace> Build() &&;

 private:
  struct Row {
    int64_t line;
    Request request;
  };

  std::string file_;
  std::vector<Row> rows_;
  double latest_s_ = 0;
  int64_t out_of_order_ = 0;
  int64_t first_out_of_order_ = 0;  // line
  int64_t without_tokens_ = 0;
  int64_t first_without_tokens_ = 0;  // line
  int64_t bad_rows_ = 0;
  std::vector<std::string> bad_row_causes_;  // of the first few
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WORKLOAD_TRACE_H_
