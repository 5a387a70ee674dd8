#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/model.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

namespace fs = std::filesystem;

constexpr char kConfig[] =
    R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 2048,
        "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 1000,
        "max_position_embeddings": 4096})";

class LoadModelTest : public ::testing::Test {
 protected:
  LoadModelTest()
      : folder_(fs::path(::testing::TempDir()) /
                ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~LoadModelTest() override { fs::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& text) {
    const fs::path path = folder_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path.string();
  }

  const fs::path folder_;
};

TEST_F(LoadModelTest, EveryModelOfTheCatalogueLoads) {
  ASSERT_FALSE(ModelCatalogue().empty());
  for (const CatalogueEntry& entry : ModelCatalogue()) {
    const absl::StatusOr<Model> model = LoadModel(entry.name);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->name, entry.name);
    EXPECT_EQ(model->source, entry.source);
    EXPECT_TRUE(absl::StartsWith(entry.source, "https://huggingface.co/")) << entry.source;
    EXPECT_FALSE(entry.description.empty()) << entry.name;
  }
}

TEST_F(LoadModelTest, TheCatalogueIsSortedByName) {
  EXPECT_TRUE(std::is_sorted(
      ModelCatalogue().begin(), ModelCatalogue().end(),
      [](const CatalogueEntry& a, const CatalogueEntry& b) { return a.name < b.name; }));
}

TEST_F(LoadModelTest, TheCatalogueHasItsOwnQuantization) {
  EXPECT_EQ(LoadModel("llama-3.1-405b-instruct")->layer_format, WeightFormat::kBf16);
  EXPECT_EQ(LoadModel("llama-3.1-405b-instruct-fp8")->layer_format, WeightFormat::kFp8);
  EXPECT_EQ(LoadModel("llama-3.1-405b-instruct-awq-int4")->layer_format,
            WeightFormat::kInt4Group128);
  EXPECT_EQ(LoadModel("llama-3.1-405b-instruct", "int4")->weight_bytes(),
            LoadModel("llama-3.1-405b-instruct-awq-int4")->weight_bytes());
}

TEST_F(LoadModelTest, AFileAndItsFolderAreTheSameModel) {
  const std::string file = Write("my-model/config.json", kConfig);
  for (const std::string& spec :
       {file, fs::path(file).parent_path().string(), fs::path(file).parent_path().string() + "/"}) {
    const absl::StatusOr<Model> model = LoadModel(spec);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->name, "my-model");
  }
  const absl::StatusOr<Model> other = LoadModel(Write("other.json", kConfig));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(other->name, "other");
}

TEST_F(LoadModelTest, WhatIsNotThereIsNotFoundAndNamesTheCatalogue) {
  for (const std::string& spec :
       {std::string("llama-3.1-405"), std::string(), std::string("/no/such/config.json"),
        std::string("a\0b", 3), std::string(100'000, 'x')}) {
    const absl::Status status = LoadModel(spec).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("llama-3.1-8b-instruct"));
    EXPECT_LT(status.message().size(), 1000);
  }
}

TEST_F(LoadModelTest, AFolderWithoutConfigNamesTheMissingFile) {
  const absl::Status status = LoadModel(folder_.string()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("config.json: no such file"));
}

TEST_F(LoadModelTest, DevicesAndOversizedFilesAreNotRead) {
  EXPECT_THAT(std::string(LoadModel("/dev/zero").status().message()),
              HasSubstr("/dev/zero: not a file: give a config.json"));
  const std::string huge = Write("huge.json", "");
  fs::resize_file(huge, 100'000'000);  // sparse
  EXPECT_THAT(std::string(LoadModel(huge).status().message()),
              HasSubstr("huge.json: 100000000 bytes, and a config.json has at most 4000000"));
}

TEST_F(LoadModelTest, AnEmptyFileIsNotJson) {
  EXPECT_THAT(std::string(LoadModel(Write("empty.json", "")).status().message()),
              HasSubstr("empty.json: not JSON"));
}

}  // namespace
}  // namespace fabricast
