#include "runtime/weights/safetensors_header.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kDamaged[] = ": the file is damaged: download it again";

// The message of the error, "" if there is none.
std::string Error(absl::string_view json, int64_t data_bytes) {
  const auto places = ParseSafetensorsHeader("x.safetensors", json, data_bytes);
  if (places.ok()) return "";
  EXPECT_EQ(places.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(places.status().message()), StartsWith("x.safetensors: "));
  return std::string(places.status().message());
}

std::string Header(absl::string_view dtype, absl::string_view shape, absl::string_view offsets) {
  return absl::StrCat(R"({"a": {"dtype": )", dtype, R"(, "shape": )", shape,
                      R"(, "data_offsets": )", offsets, "}}");
}

TEST(SafetensorsHeaderTest, TheLengthIsLittleEndian) {
  EXPECT_EQ(DecodeHeaderLength(absl::string_view("\x01\x02\x00\x00\x00\x00\x00\x00", 8)), 0x201u);
  EXPECT_EQ(DecodeHeaderLength("\xff\xff\xff\xff\xff\xff\xff\xfe"), 0xfeff'ffff'ffff'ffffu);
}

TEST(SafetensorsHeaderTest, TensorsComeInTheOrderOfTheirBytes) {
  const auto places = ParseSafetensorsHeader("x.safetensors",
                                             R"({"__metadata__": {"format": "pt", "dtype": "none"},
          "a": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [4, 16]},
          "b": {"data_offsets": [0, 4], "shape": [], "dtype": "F32"},
          "empty": {"dtype": "I64", "shape": [5, 0], "data_offsets": [4, 4]}}   )",
                                             16);
  ASSERT_TRUE(places.ok()) << places.status();
  ASSERT_EQ(places->size(), 3u);
  EXPECT_EQ((*places)[0].name, "b");
  EXPECT_EQ((*places)[0].dtype, DType::kF32);
  EXPECT_TRUE((*places)[0].shape.empty());  // a scalar: 4 bytes
  EXPECT_EQ((*places)[1].name, "empty");
  EXPECT_EQ((*places)[2].name, "a");
  EXPECT_EQ((*places)[2].dtype, DType::kBf16);
  EXPECT_EQ((*places)[2].shape, (std::vector<int64_t>{3, 2}));  // 6 x 2 bytes
  EXPECT_EQ((*places)[2].begin, 4);
  EXPECT_EQ((*places)[2].end, 16);
}

TEST(SafetensorsHeaderTest, AFileMayBeEmpty) {
  EXPECT_EQ(Error("{}", 0), "");
  EXPECT_EQ(Error(R"({"__metadata__": {}})", 0), "");
}

TEST(SafetensorsHeaderTest, EveryTypeOfTheFormatIsRead) {
  for (const auto& [name, bytes] : std::vector<std::pair<std::string, int>>{{"BOOL", 1},
                                                                            {"U8", 1},
                                                                            {"I8", 1},
                                                                            {"F8_E4M3", 1},
                                                                            {"F8_E5M2", 1},
                                                                            {"I16", 2},
                                                                            {"U16", 2},
                                                                            {"F16", 2},
                                                                            {"BF16", 2},
                                                                            {"I32", 4},
                                                                            {"U32", 4},
                                                                            {"F32", 4},
                                                                            {"I64", 8},
                                                                            {"U64", 8},
                                                                            {"F64", 8}}) {
    const auto places = ParseSafetensorsHeader(
        "x", Header(absl::StrCat("\"", name, "\""), "[3]", absl::StrCat("[0, ", 3 * bytes, "]")),
        3 * bytes);
    ASSERT_TRUE(places.ok()) << places.status();
    EXPECT_EQ(DTypeName((*places)[0].dtype), name);
  }
}

TEST(SafetensorsHeaderTest, AnUnknownTypeIsNamedWithItsTensor) {
  EXPECT_EQ(Error(Header("\"F4\"", "[2]", "[0, 1]"), 1),
            "x.safetensors: a: dtype \"F4\" is unknown: convert it to one of BOOL, U8, I8, "
            "F8_E4M3, F8_E5M2, I16, U16, F16, BF16, I32, U32, F32, I64, U64, F64");
}

TEST(SafetensorsHeaderTest, TheSizeIsTheProductOfShapeAndType) {
  EXPECT_EQ(Error(Header("\"F32\"", "[2, 3]", "[0, 24]"), 24), "");
  EXPECT_EQ(Error(Header("\"F32\"", "[2, 3]", "[0, 20]"), 20),
            absl::StrCat("x.safetensors: a: F32 [2, 3] takes 24 bytes, and data_offsets [0, 20] "
                         "leave 20",
                         kDamaged));
  EXPECT_THAT(Error(Header("\"F32\"", "[0]", "[0, 4]"), 4), HasSubstr("takes 0 bytes"));
}

TEST(SafetensorsHeaderTest, AProductThatOverflowsIsTooLarge) {
  // 2^32 x 2^32 = 2^64, which is 0 in 64 bits.
  EXPECT_THAT(Error(Header("\"U8\"", "[4294967296, 4294967296]", "[0, 0]"), 0),
              HasSubstr("takes more than 2^63 bytes"));
  // 2^62 x 4 bytes.
  EXPECT_THAT(Error(Header("\"F32\"", "[4611686018427387904]", "[0, 0]"), 0),
              HasSubstr("takes more than 2^63 bytes"));
  // 2^63 - 1 bytes: they fit, and are not there.
  EXPECT_THAT(Error(Header("\"U8\"", "[9223372036854775807]", "[0, 9223372036854775807]"), 8),
              HasSubstr("of 9,223,372,036,854,775,"));
  // Any dimension of 0 makes it empty.
  EXPECT_EQ(Error(Header("\"F32\"", "[4611686018427387904, 4, 0]", "[0, 0]"), 0), "");
}

TEST(SafetensorsHeaderTest, ATruncatedFileSaysHowMuchIsThere) {
  const std::string header =
      R"({"a": {"dtype": "U8", "shape": [1000], "data_offsets": [0, 1000]},
          "b": {"dtype": "U8", "shape": [4500], "data_offsets": [1000, 5500]}})";
  // The header and its length are before the data.
  ASSERT_EQ(header.size() + 8, 153u);
  EXPECT_EQ(Error(header, 5500), "");
  EXPECT_EQ(Error(header, 1081),
            "x.safetensors: b: lies beyond the end of the file: download it again: 1,234 of 5,653 "
            "bytes are there");
  EXPECT_THAT(Error(header, 999), StartsWith("x.safetensors: a: lies beyond"));
}

TEST(SafetensorsHeaderTest, HolesAndOverlapsAreRefused) {
  const auto two = [](absl::string_view a, absl::string_view b) {
    return absl::StrCat(R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": )", a,
                        R"(}, "b": {"dtype": "U8", "shape": [4], "data_offsets": )", b, "}}");
  };
  EXPECT_EQ(Error(two("[0, 4]", "[4, 8]"), 8), "");
  EXPECT_EQ(Error(two("[4, 8]", "[0, 4]"), 8), "");
  EXPECT_EQ(Error(two("[0, 4]", "[3, 7]"), 7),
            absl::StrCat("x.safetensors: b: begins at byte 3, inside of a, which ends at byte 4",
                         kDamaged));
  EXPECT_THAT(Error(two("[0, 4]", "[0, 4]"), 4), HasSubstr("inside of a"));
  EXPECT_EQ(Error(two("[0, 4]", "[5, 9]"), 9),
            absl::StrCat("x.safetensors: b: begins at byte 5, with a hole after a, which ends at "
                         "byte 4",
                         kDamaged));
  EXPECT_THAT(Error(two("[1, 5]", "[5, 9]"), 9), HasSubstr("a: begins at byte 1, with a hole"));
  EXPECT_EQ(Error(two("[0, 4]", "[4, 8]"), 10),
            absl::StrCat("x.safetensors: has 2 bytes that no tensor owns", kDamaged));
  EXPECT_THAT(Error(R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                        "b": {"dtype": "U8", "shape": [0], "data_offsets": [2, 2]}})",
                    4),
              HasSubstr("b: begins at byte 2, inside of a"));
}

TEST(SafetensorsHeaderTest, OffsetsAreABeginAndAnEnd) {
  for (absl::string_view offsets : {"[4, 0]", "[]", "[0]", "[0, 4, 4]"}) {
    EXPECT_THAT(Error(Header("\"U8\"", "[4]", offsets), 4), HasSubstr("instead of a begin and"));
  }
}

TEST(SafetensorsHeaderTest, NumbersAreWholeAndNotNegative) {
  for (absl::string_view number :
       {"-1", "1.0", "\"1\"", "null", "true", "[1]", "{}", "9223372036854775808",
        "18446744073709551615", "18446744073709551616"}) {
    EXPECT_THAT(Error(Header("\"U8\"", absl::StrCat("[", number, "]"), "[0, 1]"), 1),
                HasSubstr("a: shape is "))
        << number;
    EXPECT_THAT(Error(Header("\"U8\"", "[1]", absl::StrCat("[0, ", number, "]")), 1),
                HasSubstr("a: data_offsets is "))
        << number;
  }
}

TEST(SafetensorsHeaderTest, AShapeHasAtMostSixtyFourDimensions) {
  const auto ones = [](int n) {
    return absl::StrCat("[", absl::StrJoin(std::vector<int>(n, 1), ","), "]");
  };
  EXPECT_EQ(Error(Header("\"U8\"", ones(64), "[0, 1]"), 1), "");
  EXPECT_THAT(Error(Header("\"U8\"", ones(65), "[0, 1]"), 1),
              HasSubstr("instead of at most 64 numbers"));
}

TEST(SafetensorsHeaderTest, EveryFieldMustBeThereAndOfItsType) {
  EXPECT_EQ(Error(R"({"a": {"shape": [1], "data_offsets": [0, 1]}})", 1),
            absl::StrCat("x.safetensors: a: dtype is missing instead of a string", kDamaged));
  EXPECT_THAT(Error(R"({"a": {"dtype": "U8", "data_offsets": [0, 1]}})", 1),
              HasSubstr("a: shape is missing"));
  EXPECT_THAT(Error(R"({"a": {"dtype": "U8", "shape": [1]}})", 1),
              HasSubstr("a: data_offsets is missing"));
  // A field of the tensor before is none of this one's.
  const absl::string_view before =
      R"({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},)";
  EXPECT_THAT(Error(absl::StrCat(before, R"("b": {"dtype": "U8", "shape": [0]}})"), 0),
              HasSubstr("b: data_offsets is missing"));
  EXPECT_THAT(Error(absl::StrCat(before, R"("b": {"dtype": "U8", "data_offsets": [0, 0]}})"), 0),
              HasSubstr("b: shape is missing"));
  EXPECT_THAT(Error(absl::StrCat(before, R"("b": {"shape": [0], "data_offsets": [0, 0]}})"), 0),
              HasSubstr("b: dtype is missing"));
  EXPECT_THAT(Error(Header("3", "[1]", "[0, 1]"), 1), HasSubstr("a: dtype is 3 instead"));
  EXPECT_THAT(Error(Header("[]", "[1]", "[0, 1]"), 1), HasSubstr("a: dtype is [...] instead"));
  EXPECT_THAT(Error(Header("\"U8\"", "1", "[0, 1]"), 1), HasSubstr("a: shape is 1 instead"));
  EXPECT_THAT(Error(Header("\"U8\"", "{}", "[0, 1]"), 1), HasSubstr("a: shape is [...] instead"));
  EXPECT_THAT(Error(R"({"a": 3})", 0), HasSubstr("a: is 3 instead of an object"));
  EXPECT_THAT(Error(R"({"a": []})", 0), HasSubstr("a: is [...] instead of an object"));
}

TEST(SafetensorsHeaderTest, FieldsThatTheFormatDoesNotKnowAreIgnored) {
  EXPECT_EQ(Error(R"({"a": {"dtype": "U8", "x": {"dtype": [3]}, "shape": [1], "y": [[1]],
                      "data_offsets": [0, 1], "z": -1}, "__metadata__": [{"shape": 3}]})",
                  1),
            "");
}

TEST(SafetensorsHeaderTest, TwoTensorsOfOneNameAreRefused) {
  EXPECT_EQ(Error(R"({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                      "a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}})",
                  2),
            absl::StrCat("x.safetensors: a: twice the same key", kDamaged));
}

TEST(SafetensorsHeaderTest, WhatIsNotAJsonObjectIsRefused) {
  EXPECT_THAT(Error("", 0), StartsWith("x.safetensors: not JSON: "));
  EXPECT_THAT(Error(std::string(100, '\0'), 0), EndsWith(kDamaged));
  EXPECT_THAT(Error("[]", 0), HasSubstr("the header is [...] instead of an object"));
  EXPECT_THAT(Error("3", 0), HasSubstr("the header is 3 instead of an object"));
  EXPECT_THAT(Error(std::string(1'000'000, '['), 0), EndsWith(kDamaged));
  EXPECT_THAT(Error(R"({"__metadata__": )" + std::string(1'000'000, '['), 0),
              HasSubstr("nested more than 64 deep"));
}

}  // namespace
}  // namespace fabricast
