#include "runtime/weights/checkpoint.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/weights/checkpoint_writer.h"

namespace fabricast {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

namespace fs = std::filesystem;

constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kHeader[] =
    R"({"a": {"dtype": "U8", "shape": [2, 3], "data_offsets": [0, 6]},
        "b": {"dtype": "BF16", "shape": [1], "data_offsets": [6, 8]}})";

TensorSpec Bytes(int64_t count) { return {DType::kU8, {count}}; }

class CheckpointTest : public ::testing::Test {
 protected:
  std::shared_ptr<const Checkpoint> Open() {
    absl::StatusOr<std::shared_ptr<const Checkpoint>> checkpoint = Checkpoint::Open(folder_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.value_or(nullptr);
  }

  // The message without the folder; "" if there is no error.
  std::string Error(absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    const absl::Status status = Checkpoint::Open(folder_.path()).status();
    if (status.ok()) return "";
    EXPECT_EQ(status.code(), code) << status;
    const std::string message(status.message());
    EXPECT_THAT(message, StartsWith(folder_.path()));
    return message.substr(folder_.path().size());
  }

  std::string SingleError(absl::string_view contents) {
    folder_.Write("model.safetensors", contents);
    return Error();
  }

  const TemporaryFolder folder_;
};

TEST_F(CheckpointTest, TensorsAreFoundByName) {
  folder_.Write("model.safetensors", SafetensorsFile(kHeader, "abcdefgh"));
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  const Tensor* a = checkpoint->Find("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->name, "a");
  EXPECT_EQ(a->dtype, DType::kU8);
  EXPECT_EQ(a->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(a->elements(), 6);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(a->bytes.data()), a->bytes.size()), "abcdef");
  const Tensor* b = checkpoint->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->bytes.size(), 2u);
  EXPECT_EQ(static_cast<char>(b->bytes[1]), 'h');
  EXPECT_EQ(checkpoint->Find("c"), nullptr);
  EXPECT_EQ(checkpoint->Find(""), nullptr);
  EXPECT_EQ(checkpoint->FileOf(*a), folder_.PathOf("model.safetensors"));
  EXPECT_EQ(checkpoint->folder(), folder_.path());
  EXPECT_EQ(checkpoint->total_bytes(), 8);
}

TEST_F(CheckpointTest, ShardsAreOneCheckpoint) {
  folder_.WriteShards({{"1.safetensors", {{"a", Bytes(3)}, {"none", Bytes(0)}}},
                       {"2.safetensors", {{"b", Bytes(5)}}}});
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  ASSERT_NE(checkpoint->Find("a"), nullptr);
  ASSERT_NE(checkpoint->Find("b"), nullptr);
  ASSERT_NE(checkpoint->Find("none"), nullptr);
  EXPECT_EQ(checkpoint->FileOf(*checkpoint->Find("a")), folder_.PathOf("1.safetensors"));
  EXPECT_EQ(checkpoint->FileOf(*checkpoint->Find("b")), folder_.PathOf("2.safetensors"));
  EXPECT_EQ(checkpoint->FileOf(*checkpoint->Find("none")), folder_.PathOf("1.safetensors"));
  EXPECT_EQ(checkpoint->Find("b")->bytes.size(), 5u);
  EXPECT_EQ(static_cast<int>(checkpoint->Find("b")->bytes[4]), 4);
  EXPECT_EQ(checkpoint->Find("none")->elements(), 0);
  EXPECT_EQ(checkpoint->total_bytes(), 8);
}

TEST_F(CheckpointTest, ASingleFileGoesBeforeAnIndex) {
  folder_.WriteShards({{"1.safetensors", {{"a", Bytes(3)}}}});
  folder_.Write("model.safetensors", SafetensorsFile({{"a", Bytes(4)}}));
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->Find("a")->elements(), 4);
}

TEST_F(CheckpointTest, LinksAreFollowedAsInHuggingFacesCache) {
  folder_.Write("blob", SafetensorsFile({{"a", Bytes(4)}}));
  fs::create_symlink("blob", folder_.PathOf("model.safetensors"));
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->Find("a")->elements(), 4);
}

TEST_F(CheckpointTest, AReleasedTensorCanBeReadAgain) {
  // More than three pages, which begin in the middle of one: two at least are the tensor's alone.
  folder_.Write("model.safetensors", SafetensorsFile({{"a", Bytes(3 * sysconf(_SC_PAGESIZE))}}));
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  const Tensor& a = *checkpoint->Find("a");
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t i = 0; i < a.bytes.size(); ++i) {
      ASSERT_EQ(static_cast<size_t>(a.bytes[i]), i % 251) << "pass " << pass;
    }
    checkpoint->Release(a);
  }
}

TEST_F(CheckpointTest, AFolderMustBeThere) {
  const std::string path = folder_.PathOf("nowhere");
  EXPECT_EQ(Checkpoint::Open(path).status(),
            absl::NotFoundError(
                absl::StrCat(path, ": no such folder: give a checkpoint folder of Hugging Face")));
  folder_.Write("model.safetensors", SafetensorsFile(kHeader, "abcdefgh"));
  const std::string file = folder_.PathOf("model.safetensors");
  EXPECT_EQ(Checkpoint::Open(file).status(),
            absl::InvalidArgumentError(absl::StrCat(
                file, ": not a folder: give the folder that holds model.safetensors")));
  EXPECT_EQ(Checkpoint::Open(file + "/below").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Checkpoint::Open("").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, AFolderWithoutWeightsIsNoCheckpoint) {
  EXPECT_EQ(Error(absl::StatusCode::kNotFound),
            ": has neither model.safetensors nor model.safetensors.index.json: give a checkpoint "
            "folder of Hugging Face");
}

TEST_F(CheckpointTest, ShardsWithoutTheirIndexAreNoCheckpoint) {
  folder_.Write("model-00001-of-00002.safetensors", SafetensorsFile({{"a", Bytes(4)}}));
  EXPECT_EQ(Error(absl::StatusCode::kNotFound),
            ": has model-00001-of-00002.safetensors but no model.safetensors.index.json: download "
            "that too");
}

TEST_F(CheckpointTest, PyTorchWeightsAreToBeConverted) {
  folder_.Write("pytorch_model.bin", "PK");
  EXPECT_EQ(Error(absl::StatusCode::kUnimplemented),
            ": has PyTorch weights only (pytorch_model.bin): convert them with transformers: "
            "save_pretrained(..., safe_serialization=True)");
}

TEST_F(CheckpointTest, PyTorchWeightsBesideSafetensorsDoNotMatter) {
  folder_.Write("pytorch_model.bin", "PK");
  folder_.Write("model.safetensors", SafetensorsFile(kHeader, "abcdefgh"));
  EXPECT_NE(Open(), nullptr);
}

TEST_F(CheckpointTest, AnEmptyFileIsTruncated) {
  EXPECT_EQ(SingleError(""),
            "/model.safetensors: ends in its header: download it again: 0 of at least 8 bytes are "
            "there");
}

TEST_F(CheckpointTest, AHeaderMustFitItsFile) {
  EXPECT_EQ(
      SingleError(absl::string_view("\x10\x27\0\0\0\0\0\0{}", 10)),  // 10,000
      "/model.safetensors: ends in its header: download it again: 10 of at least 10,008 bytes "
      "are there");
}

TEST_F(CheckpointTest, AHeaderHasAtMostAHundredMegabytes) {
  EXPECT_EQ(SingleError(absl::string_view("\0\0\0\0\0\0\0\x10{}", 10)),  // 2^60
            "/model.safetensors: a header of 1,152,921,504,606,846,976 bytes, and safetensors has "
            "100,000,000 at most: download it again");
  EXPECT_THAT(SingleError("<!DOCTYPE html><html>404</html>"), HasSubstr(": a header of "));
  EXPECT_THAT(SingleError(absl::string_view("\x00\xe1\xf5\x05\0\0\0\0", 8)),  // 100,000,000
              HasSubstr("8 of at least 100,000,008 bytes"));
  EXPECT_THAT(SingleError(absl::string_view("\x01\xe1\xf5\x05\0\0\0\0", 8)),
              HasSubstr("a header of 100,000,001 bytes"));
}

TEST_F(CheckpointTest, AFileIsRefusedWhereverItIsCutOff) {
  const std::string whole = SafetensorsFile(kHeader, "abcdefgh");
  EXPECT_EQ(SingleError(whole), "");
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::string error = SingleError(whole.substr(0, size));
    ASSERT_THAT(error, StartsWith("/model.safetensors: ")) << size;
    ASSERT_THAT(error, HasSubstr(absl::StrCat(" download it again: ", size, " of "))) << size;
  }
  EXPECT_THAT(SingleError(whole + "i"), HasSubstr(": has 1 bytes that no tensor owns: "));
}

TEST_F(CheckpointTest, WhateverByteIsWrongTensorsStayInsideTheirFile) {
  const std::string whole = SafetensorsFile(kHeader, "abcdefgh");
  for (size_t place = 0; place < whole.size(); ++place) {
    for (char value : {'\0', ' ', '"', '0', '9', '{', '}', '\xff'}) {
      std::string damaged = whole;
      damaged[place] = value;
      folder_.Write("model.safetensors", damaged);
      const auto checkpoint = Checkpoint::Open(folder_.path());
      if (!checkpoint.ok()) continue;
      EXPECT_EQ((*checkpoint)->total_bytes(), 8);
      for (const char* name : {"a", "b"}) {
        const Tensor* tensor = (*checkpoint)->Find(name);
        if (tensor == nullptr) continue;
        const std::string file = damaged.substr(damaged.size() - 8);
        EXPECT_THAT(file, HasSubstr(std::string(reinterpret_cast<const char*>(tensor->bytes.data()),
                                                tensor->bytes.size())));
      }
    }
  }
}

TEST_F(CheckpointTest, AnUnknownTypeIsNamedWithFileAndTensor) {
  EXPECT_THAT(SingleError(SafetensorsFile(
                  R"({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}})", "a")),
              StartsWith("/model.safetensors: a: dtype \"F4\" is unknown: "));
}

TEST_F(CheckpointTest, APointerOfGitLfsIsTold) {
  constexpr char kPointer[] =
      "version https://git-lfs.github.com/spec/v1\n"
      "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
      "size 12345\n";
  EXPECT_EQ(SingleError(kPointer), "/model.safetensors: is a Git LFS pointer: run git lfs pull");
  fs::remove(folder_.PathOf("model.safetensors"));
  folder_.Write(kIndex, R"({"weight_map": {"a": "1.safetensors"}})");
  folder_.Write("1.safetensors", kPointer);
  EXPECT_EQ(Error(), "/1.safetensors: is a Git LFS pointer: run git lfs pull");
  folder_.Write(kIndex, kPointer);
  EXPECT_EQ(Error(), absl::StrCat("/", kIndex, ": is a Git LFS pointer: run git lfs pull"));
}

TEST_F(CheckpointTest, AFolderIsNoFile) {
  fs::create_directory(folder_.PathOf("model.safetensors"));
  EXPECT_EQ(Error(), "/model.safetensors: is a folder instead of a file: download it again");
}

TEST_F(CheckpointTest, APipeIsNoFileAndIsNotWaitedFor) {
  ASSERT_EQ(mkfifo(folder_.PathOf("model.safetensors").c_str(), 0600), 0);
  EXPECT_EQ(Error(),
            "/model.safetensors: is a device or pipe instead of a file: download it again");
}

TEST_F(CheckpointTest, ALinkToNothingIsAMissingFile) {
  fs::create_symlink("nowhere", folder_.PathOf("model.safetensors"));
  EXPECT_EQ(Error(absl::StatusCode::kNotFound), "/model.safetensors: no such file: download it");
}

TEST_F(CheckpointTest, AFileThatCannotBeOpenedSaysWhy) {
  // Unlike permissions, this holds for root too.
  fs::create_symlink("model.safetensors", folder_.PathOf("model.safetensors"));
  EXPECT_EQ(Error(absl::StatusCode::kUnknown),  // Abseil's for ELOOP
            "/model.safetensors: cannot be opened: Too many levels of symbolic links");
}

TEST_F(CheckpointTest, AFileWithoutPermissionSaysSo) {
  if (geteuid() == 0) GTEST_SKIP() << "root may read everything";
  folder_.Write("model.safetensors", SafetensorsFile(kHeader, "abcdefgh"));
  ASSERT_EQ(chmod(folder_.PathOf("model.safetensors").c_str(), 0), 0);
  EXPECT_EQ(Error(absl::StatusCode::kPermissionDenied),
            "/model.safetensors: cannot be opened: Permission denied");
}

TEST_F(CheckpointTest, AMissingShardIsNamed) {
  folder_.WriteShards({{"1.safetensors", {{"a", Bytes(3)}}}, {"2.safetensors", {{"b", Bytes(5)}}}});
  fs::remove(folder_.PathOf("2.safetensors"));
  EXPECT_EQ(Error(absl::StatusCode::kNotFound), "/2.safetensors: no such file: download it");
}

TEST_F(CheckpointTest, ABadShardIsNamed) {
  folder_.WriteShards({{"1.safetensors", {{"a", Bytes(3)}}}, {"2.safetensors", {{"b", Bytes(5)}}}});
  fs::resize_file(folder_.PathOf("2.safetensors"), fs::file_size(folder_.PathOf("1.safetensors")));
  EXPECT_THAT(Error(), StartsWith("/2.safetensors: b: lies beyond the end of the file: "));
}

TEST_F(CheckpointTest, AnIndexThatIsNoIndexIsNamed) {
  folder_.Write(kIndex, "{");
  EXPECT_THAT(Error(), StartsWith(absl::StrCat("/", kIndex, ": not JSON: ")));
}

TEST_F(CheckpointTest, AnIndexIsReadUpToAHundredMegabytes) {
  folder_.Write(kIndex, "{}");
  fs::resize_file(folder_.PathOf(kIndex), 100'000'001);
  EXPECT_EQ(Error(), absl::StrCat("/", kIndex,
                                  ": 100,000,001 bytes, and an index has 100,000,000 at most: give "
                                  "an index of Hugging Face"));
}

TEST_F(CheckpointTest, AShardInAnotherFolderIsRefused) {
  folder_.Write(kIndex, R"({"weight_map": {"a": "../x"}})");
  EXPECT_THAT(Error(), StartsWith(absl::StrCat("/", kIndex, ": a: is in \"../x\" instead of ")));
}

TEST_F(CheckpointTest, TensorsMustBeWhereTheIndexSays) {
  folder_.WriteShards({{"1.safetensors", {{"a", Bytes(3)}}}, {"2.safetensors", {{"b", Bytes(5)}}}});
  folder_.Write(kIndex,
                R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors",
                                   "c": "2.safetensors"}})");
  EXPECT_EQ(Error(),
            absl::StrCat("/", kIndex, ": c: is not in 2.safetensors: download both again"));
  folder_.Write(kIndex, R"({"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}})");
  EXPECT_EQ(Error(),
            absl::StrCat("/", kIndex, ": a: is not in 2.safetensors: download both again"));
}

TEST_F(CheckpointTest, OneTensorInTwoShardsIsRefused) {
  folder_.WriteShards({{"1.safetensors", {{"a", Bytes(3)}, {"b", Bytes(5)}}},
                       {"2.safetensors", {{"b", Bytes(5)}}}});
  EXPECT_EQ(Error(), absl::StrCat("/2.safetensors: b: is in ", folder_.PathOf("1.safetensors"),
                                  " too: download both again"));
}

using CheckpointDeathTest = CheckpointTest;

TEST_F(CheckpointDeathTest, OnlyItsOwnTensorsHaveAFile) {
  folder_.Write("model.safetensors", SafetensorsFile(kHeader, "abcdefgh"));
  const auto checkpoint = Open();
  EXPECT_DEATH(checkpoint->FileOf(Tensor{"c", DType::kU8, {}, {}}), "check failed.*c in ");
}

}  // namespace
}  // namespace fabricast
