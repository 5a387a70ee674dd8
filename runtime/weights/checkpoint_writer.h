// Writes checkpoints for tests.
#ifndef FABRICAST_RUNTIME_WEIGHTS_CHECKPOINT_WRITER_H_
#define FABRICAST_RUNTIME_WEIGHTS_CHECKPOINT_WRITER_H_

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "runtime/weights/tensor.h"

namespace fabricast {

// A tensor to write; byte i of its data is i % 251.
struct TensorSpec {
  DType dtype = DType::kBf16;
  std::vector<int64_t> shape;

  int64_t bytes() const;
};

using TensorSpecs = std::map<std::string, TensorSpec>;

// `header`, after its length and before `data`.
std::string SafetensorsFile(absl::string_view header, absl::string_view data);
// All of `tensors`, one after the other.
std::string SafetensorsFile(const TensorSpecs& tensors);

// A folder that is removed with this.
class TemporaryFolder {
 public:
  // Named after the test that runs.
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string path() const { return path_.string(); }
  std::string PathOf(const std::string& name) const { return (path_ / name).string(); }
  void Write(const std::string& name, absl::string_view contents) const;
  // model.safetensors.index.json and shards of the names given.
  void WriteShards(const std::map<std::string, TensorSpecs>& shards) const;

 private:
  const std::filesystem::path path_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WEIGHTS_CHECKPOINT_WRITER_H_
