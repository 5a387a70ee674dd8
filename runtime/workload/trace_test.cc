#include "runtime/workload/trace.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kHeader[] = "TIMESTAMP,ContextTokens,GeneratedTokens\n";

MATCHER_P3(RequestIs, arrival_s, prompt_tokens, output_tokens, "") {
  return arg.arrival_s == arrival_s && arg.prompt_tokens == prompt_tokens &&
         arg.output_tokens == output_tokens;
}

Trace Sure(absl::StatusOr<Trace> trace) {
  if (!trace.ok()) {
    ADD_FAILURE() << trace.status();
    return {};
  }
  return *std::move(trace);
}

Trace Csv(const std::string& rows) { return Sure(ParseAzureCsv("x.csv", kHeader + rows)); }
std::string CsvError(const std::string& rows) {
  return std::string(ParseAzureCsv("x.csv", kHeader + rows).status().message());
}
Trace Jsonl(const std::string& text) { return Sure(ParseJsonl("x.jsonl", text)); }
std::string JsonlError(const std::string& text) {
  return std::string(ParseJsonl("x.jsonl", text).status().message());
}

TEST(AzureCsvTest, ArrivalsCountFromTheFirstRow) {
  const Trace trace =
      Csv("2023-11-16 18:15:46.6805900,374,44\n"
          "2023-11-16 18:15:50.9951690,396,109\n");
  // 50.9951690 - 46.6805900 = 4.3145790.
  EXPECT_THAT(trace.requests, ElementsAre(RequestIs(0.0, 374, 44), RequestIs(4.314579, 396, 109)));
  EXPECT_THAT(trace.warnings, IsEmpty());
}

TEST(AzureCsvTest, LineEndsAndTheByteOrderMarkDoNotMatter) {
  const std::string row = "2023-11-16 18:15:46.6805900,374,44";
  for (const std::string& text :
       {absl::StrCat(kHeader, row), absl::StrCat(kHeader, row, "\n"),
        absl::StrCat(kHeader, row, "\r\n\r\n"), absl::StrCat("\xEF\xBB\xBF", kHeader, "\n", row),
        absl::StrCat("TIMESTAMP,ContextTokens,GeneratedTokens\r\n", row)}) {
    EXPECT_THAT(Sure(ParseAzureCsv("x.csv", text)).requests, ElementsAre(RequestIs(0.0, 374, 44)))
        << text;
  }
}

TEST(AzureCsvTest, OtherHeadersAreRefused) {
  for (const char* text : {"", "\n", "TIMESTAMP,ContextTokens\n", "timestamp,in,out\n1,2,3\n",
                           "2023-11-16 18:15:46.6805900,374,44\n"}) {
    const absl::Status status = ParseAzureCsv("x.csv", text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("an Azure trace begins with the line TIMESTAMP,ContextTokens"));
  }
  EXPECT_EQ(CsvError(""), "x.csv: 0 requests: give a trace with 1 to 10000000");
}

TEST(AzureCsvTest, BadRowsAreListedWithLineAndCause) {
  EXPECT_EQ(CsvError("2023-11-16 18:15:46,374,44\n"
                     "2023-11-16 18:15:46,374\n"
                     "2023-11-16 18:15:46,374,44,1\n"),
            "x.csv: 2 bad rows: line 3: \"2023-11-16 18:15:46,374\" has 2 fields instead of 3; "
            "line 4: \"2023-11-16 18:15:46,374,44,1\" has 4 fields instead of 3");
  EXPECT_EQ(CsvError("noon,374,44\n"),
            "x.csv: 1 bad row: line 2: TIMESTAMP is \"noon\", not a time such as "
            "2023-11-16 18:15:46.6805900");
  for (const char* count : {"", "-1", "1.5", "1e3", "ten", "\"5\"", " 5", "10000001", "nan",
                            "99999999999999999999999"}) {
    EXPECT_THAT(CsvError(absl::StrCat("2023-11-16 18:15:46,", count, ",44\n")),
                HasSubstr("line 2: ContextTokens is \""))
        << count;
    EXPECT_THAT(CsvError(absl::StrCat("2023-11-16 18:15:46,1,", count, "\n")),
                HasSubstr("line 2: GeneratedTokens is \""))
        << count;
  }
}

TEST(AzureCsvTest, TheSixthBadRowIsOnlyCounted) {
  const std::string error = CsvError("a\nb\nc\nd\ne\nf\ng\n");
  EXPECT_THAT(error, HasSubstr("x.csv: 7 bad rows: line 2: \"a\" has 1 field instead of 3; "));
  EXPECT_THAT(error, HasSubstr("line 6: \"e\" has 1 field instead of 3; and 2 more"));
}

TEST(AzureCsvTest, RowsOutOfOrderAreSortedWithAWarning) {
  const Trace trace =
      Csv("2023-11-16 00:00:01,1,1\n"
          "2023-11-16 00:00:03,2,2\n"
          "2023-11-16 00:00:02,3,3\n"
          "2023-11-16 00:00:00,4,4\n"
          "2023-11-16 00:00:03,5,5\n");
  EXPECT_THAT(trace.requests,
              ElementsAre(RequestIs(0.0, 4, 4), RequestIs(1.0, 1, 1), RequestIs(2.0, 3, 3),
                          RequestIs(3.0, 2, 2), RequestIs(3.0, 5, 5)));
  EXPECT_THAT(trace.warnings, ElementsAre("x.csv: 2 rows out of order: sorted (first: line 4)"));
}

TEST(AzureCsvTest, RowsWithoutTokensAreLeftOutWithAWarning) {
  const Trace trace =
      Csv("2023-11-16 00:00:01,1,0\n"
          "2023-11-16 00:00:03,2,2\n"
          "2023-11-16 00:00:04,0,3\n");
  EXPECT_THAT(trace.requests, ElementsAre(RequestIs(2.0, 2, 2)));
  EXPECT_THAT(trace.warnings, ElementsAre("x.csv: 2 rows with 0 tokens: left out (first: line 2)"));
}

TEST(AzureCsvTest, BinaryIsEscapedAndCutInMessages) {
  const std::string error = CsvError(std::string(1'000'000, '\1') + "\n");
  EXPECT_THAT(error, HasSubstr("\\x01\\x01"));
  EXPECT_LT(error.size(), 400);
}

TEST(JsonlTest, ReadsOwnAndMooncakesNames) {
  EXPECT_THAT(
      Jsonl(R"({"arrival_s": 0.5, "prompt_tokens": 512, "output_tokens": 128})"
            "\n"
            R"({"timestamp": 1500, "input_length": 6758, "output_length": 500, "hash_ids": [1]})")
          .requests,
      ElementsAre(RequestIs(0.5, 512, 128), RequestIs(1.5, 6758, 500)));
}

TEST(JsonlTest, BlankLinesAndLineEndsDoNotMatter) {
  const std::string row = R"({"arrival_s": 2, "prompt_tokens": 5, "output_tokens": 6})";
  EXPECT_THAT(Jsonl("\n \r\n" + row + "\r\n\n").requests, ElementsAre(RequestIs(2.0, 5, 6)));
  EXPECT_THAT(Jsonl("\xEF\xBB\xBF" + row).requests, ElementsAre(RequestIs(2.0, 5, 6)));
}

TEST(JsonlTest, BadRowsAreListedWithLineAndCause) {
  EXPECT_EQ(JsonlError("{}\n[1]\nx\n"),
            "x.jsonl: 3 bad rows: line 1: neither arrival_s nor timestamp given; "
            "line 2: \"[1]\" is not a JSON object; line 3: \"x\" is not a JSON object");
  EXPECT_THAT(JsonlError(R"({"arrival_s": 1, "timestamp": 1})"),
              HasSubstr("both arrival_s and timestamp given"));
  EXPECT_THAT(JsonlError(R"({"arrival_s": 1, "input_length": 1})"),
              HasSubstr("neither output_tokens nor output_length given"));
  for (const char* value : {"-1", "null", "\"1\"", "1e300", "[]", "true"}) {
    EXPECT_THAT(JsonlError(absl::StrCat(R"({"prompt_tokens":1,"output_tokens":1,"arrival_s":)",
                                        value, "}")),
                HasSubstr("line 1: arrival_s is "))
        << value;
  }
  for (const char* value : {"-1", "1.0", "null", "\"1\"", "10000001", "18446744073709551615",
                            "99999999999999999999999", "{}"}) {
    EXPECT_THAT(
        JsonlError(absl::StrCat(R"({"arrival_s":1,"output_length":1,"input_length":)", value, "}")),
        HasSubstr("line 1: input_length is "))
        << value;
  }
  // No number at all, in JSON.
  EXPECT_THAT(JsonlError(R"({"arrival_s": NaN, "prompt_tokens": 1, "output_tokens": 1})"),
              HasSubstr("is not a JSON object"));
}

TEST(JsonlTest, DeepAndLongRowsAreRefused) {
  const std::string deep = absl::StrCat(std::string(400'000, '['), std::string(400'000, ']'));
  EXPECT_THAT(
      JsonlError(absl::StrCat(R"({"prompt_tokens":1,"output_tokens":1,"arrival_s":)", deep, "}")),
      HasSubstr("arrival_s is an array, not a number"));
  EXPECT_THAT(JsonlError(std::string(1'000'001, 'x')),
              HasSubstr("line 1: 1000001 bytes, and a row may have 1000000"));
}

TEST(ReadTraceFileTest, OnlyFilesAreRead) {
  const std::string path = ::testing::TempDir() + "/trace.csv";
  std::ofstream(path, std::ios::binary) << std::string("a\r\n\0b", 5);
  EXPECT_EQ(*ReadTraceFile(path), std::string("a\r\n\0b", 5));
  EXPECT_EQ(ReadTraceFile(path + ".no").status(), absl::NotFoundError(path + ".no: no such file"));
  EXPECT_EQ(ReadTraceFile(::testing::TempDir()).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadTraceFile("/dev/zero").status().message(), "/dev/zero: not a file: give a trace");
}

TEST(ReadTraceFileTest, HugeFilesAreRefusedUnread) {
  const std::string path = ::testing::TempDir() + "/huge.csv";
  std::ofstream(path).close();
  std::filesystem::resize_file(path, 3'000'000'000);  // sparse
  EXPECT_EQ(ReadTraceFile(path).status().message(),
            path + ": 3000000000 bytes, and a trace may have 2147483648: cut it");
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace fabricast
