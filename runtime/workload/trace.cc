#include "runtime/workload/trace.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <tuple>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace fabricast {
namespace {

constexpr uintmax_t kMaxFileBytes = uintmax_t{2} << 30;
constexpr int64_t kMaxRequests = 10'000'000;
constexpr int64_t kMaxCauses = 5;

absl::string_view Rows(int64_t count) { return count == 1 ? "row" : "rows"; }

}  // namespace

void TraceBuilder::Add(int64_t line, const Request& request) {
  if (request.prompt_tokens == 0 || request.output_tokens == 0) {
    if (without_tokens_++ == 0) first_without_tokens_ = line;
    return;
  }
  if (request.arrival_s < latest_s_) {
    if (out_of_order_++ == 0) first_out_of_order_ = line;
  }
  latest_s_ = std::max(latest_s_, request.arrival_s);
  rows_.push_back({line, request});
}

void TraceBuilder::AddBadRow(int64_t line, absl::string_view cause) {
  if (bad_rows_++ < kMaxCauses) {
    bad_row_causes_.push_back(absl::StrCat("line ", line, ": ", cause));
  }
}

absl::StatusOr<Trace> TraceBuilder::Build() && {
  if (bad_rows_ > 0) {
    const int64_t rest = bad_rows_ - static_cast<int64_t>(bad_row_causes_.size());
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ": ", bad_rows_, " bad ", Rows(bad_rows_), ": ",
                     absl::StrJoin(bad_row_causes_, "; "),
                     rest > 0 ? absl::StrCat("; and ", rest, " more") : ""));
  }
  const int64_t count = static_cast<int64_t>(rows_.size());
  if (count == 0 || count > kMaxRequests) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d requests: give a trace with 1 to %d", file_, count, kMaxRequests));
  }
  Trace trace;
  if (without_tokens_ > 0) {
    trace.warnings.push_back(absl::StrFormat("%s: %d %s with 0 tokens: left out (first: line %d)",
                                             file_, without_tokens_, Rows(without_tokens_),
                                             first_without_tokens_));
  }
  if (out_of_order_ > 0) {
    trace.warnings.push_back(absl::StrFormat("%s: %d %s out of order: sorted (first: line %d)",
                                             file_, out_of_order_, Rows(out_of_order_),
                                             first_out_of_order_));
    // Those that arrive together stay in the order of the file.
    std::sort(rows_.begin(), rows_.end(), [](const Row& a, const Row& b) {
      return std::tie(a.request.arrival_s, a.line) < std::tie(b.request.arrival_s, b.line);
    });
  }
  trace.requests.reserve(rows_.size());
  for (const Row& row : rows_) trace.requests.push_back(row.request);
  return trace;
}

absl::StatusOr<std::string> ReadTraceFile(absl::string_view path) {
  namespace fs = std::filesystem;
  const std::string name(path);
  std::error_code error;
  const fs::file_status status = fs::status(name, error);
  if (!fs::exists(status)) {
    return absl::NotFoundError(absl::StrCat(name, ": no such file"));
  }
  if (!fs::is_regular_file(status)) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": not a file: give a trace"));
  }
  const uintmax_t bytes = fs::file_size(name, error);
  if (error) return absl::UnavailableError(absl::StrCat(name, ": ", error.message()));
  if (bytes > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: %d bytes, and a trace may have %d: cut it", name, bytes, kMaxFileBytes));
  }
  std::ifstream in(name, std::ios::binary);
  std::string text(bytes, '\0');
  in.read(text.data(), static_cast<std::streamsize>(bytes));
  if (!in) {
    return absl::PermissionDeniedError(
        absl::StrCat(name, ": cannot be read: ", std::strerror(errno)));
  }
  return text;
}

}  // namespace fabricast
