#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "runtime/workload/lengths.h"
#include "runtime/workload/numbers.h"
#include "runtime/workload/timestamp.h"
#include "runtime/workload/trace.h"

namespace fabricast {
namespace {

constexpr absl::string_view kHeader = "TIMESTAMP,ContextTokens,GeneratedTokens";
constexpr absl::string_view kByteOrderMark = "\xEF\xBB\xBF";

struct Row {
  int64_t line;
  int64_t time_ns;
  int64_t prompt_tokens;
  int64_t output_tokens;
};

std::string Shown(absl::string_view text) {
  constexpr size_t kMax = 40;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kMax)),
                      text.size() > kMax ? "...\"" : "\"");
}

absl::StatusOr<int64_t> ParseTokenCount(absl::string_view field, absl::string_view text) {
  const std::optional<int64_t> tokens = ParseWhole(text);
  if (tokens && *tokens <= kMaxTokens) return *tokens;
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", Shown(text), ", not a whole number up to ", kMaxTokens));
}

absl::StatusOr<Row> ParseRow(int64_t line, absl::string_view text) {
  const std::vector<absl::string_view> fields = absl::StrSplit(text, ',');
  if (fields.size() != 3) {
    return absl::InvalidArgumentError(absl::StrCat(Shown(text), " has ", fields.size(),
                                                   fields.size() == 1 ? " field" : " fields",
                                                   " instead of 3"));
  }
  const std::optional<int64_t> time_ns = ParseTimestampNs(fields[0]);
  if (!time_ns) {
    return absl::InvalidArgumentError(absl::StrCat(
        "TIMESTAMP is ", Shown(fields[0]), ", not a time such as 2023-11-16 18:15:46.6805900"));
  }
  const absl::StatusOr<int64_t> prompt = ParseTokenCount("ContextTokens", fields[1]);
  if (!prompt.ok()) return prompt.status();
  const absl::StatusOr<int64_t> output = ParseTokenCount("GeneratedTokens", fields[2]);
  if (!output.ok()) return output.status();
  return Row{line, *time_ns, *prompt, *output};
}

}  // namespace

absl::StatusOr<Trace> ParseAzureCsv(absl::string_view file, absl::string_view text) {
  absl::ConsumePrefix(&text, kByteOrderMark);
  TraceBuilder builder(file);
  std::vector<Row> rows;
  int64_t line = 0;
  for (absl::string_view content : absl::StrSplit(text, '\n')) {
    ++line;
    absl::ConsumeSuffix(&content, "\r");
    if (line == 1) {
      if (content == kHeader) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          file, ": line 1: ", Shown(content), ": an Azure trace begins with the line ", kHeader));
    }
    if (content.empty()) continue;
    const absl::StatusOr<Row> row = ParseRow(line, content);
    if (row.ok()) {
      rows.push_back(*row);
    } else {
      builder.AddBadRow(line, row.status().message());
    }
  }
  int64_t start_ns = INT64_MAX;
  for (const Row& row : rows) start_ns = std::min(start_ns, row.time_ns);
  for (const Row& row : rows) {
    builder.Add(row.line, {(row.time_ns - start_ns) / 1e9, row.prompt_tokens, row.output_tokens});
  }
  return std::move(builder).Build();
}

}  // namespace fabricast
