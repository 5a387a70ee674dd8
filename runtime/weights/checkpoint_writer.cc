#include "runtime/weights/checkpoint_writer.h"

#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/check.h"

namespace fabricast {

namespace fs = std::filesystem;

namespace {

const std::string& Pattern() {
  static const std::string& pattern = *[] {
    auto* bytes = new std::string;
    for (int i = 0; i < 251; ++i) bytes->push_back(static_cast<char>(i));
    return bytes;
  }();
  return pattern;
}

}  // namespace

int64_t TensorSpec::bytes() const {
  int64_t result = DTypeBytes(dtype);
  for (int64_t dimension : shape) result *= dimension;
  return result;
}

std::string SafetensorsFile(absl::string_view header, absl::string_view data) {
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(header.size() >> (8 * i)));
  absl::StrAppend(&file, header, data);
  return file;
}

std::string SafetensorsFile(const TensorSpecs& tensors) {
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = data.size();
    const size_t end = begin + static_cast<size_t>(tensor.bytes());
    while (data.size() < end) data.append(Pattern(), 0, end - data.size());
    header[name] = {{"dtype", std::string(DTypeName(tensor.dtype))},
                    {"shape", tensor.shape},
                    {"data_offsets", {begin, end}}};
  }
  return SafetensorsFile(header.dump(), data);
}

TemporaryFolder::TemporaryFolder()
    : path_(fs::path(::testing::TempDir()) /
            ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
  fs::remove_all(path_);
  fs::create_directories(path_);
}

TemporaryFolder::~TemporaryFolder() { fs::remove_all(path_); }

void TemporaryFolder::Write(const std::string& name, absl::string_view contents) const {
  std::ofstream file(path_ / name, std::ios::binary);
  file.write(contents.data(), static_cast<std::streamsize>(contents.size()));
  file.close();
  FABRICAST_CHECK(file.good()) << PathOf(name);
}

void TemporaryFolder::WriteShards(const std::map<std::string, TensorSpecs>& shards) const {
  nlohmann::json weight_map = nlohmann::json::object();
  int64_t total = 0;
  for (const auto& [shard, tensors] : shards) {
    Write(shard, SafetensorsFile(tensors));
    for (const auto& [name, tensor] : tensors) {
      weight_map[name] = shard;
      total += tensor.bytes();
    }
  }
  const nlohmann::json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  Write("model.safetensors.index.json", index.dump(2));
}

}  // namespace fabricast
