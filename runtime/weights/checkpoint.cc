#include "runtime/weights/checkpoint.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/check.h"
#include "runtime/weights/json_events.h"
#include "runtime/weights/read_only_file.h"
#include "runtime/weights/safetensors_header.h"
#include "runtime/weights/shard_index.h"

namespace fabricast {
namespace {

namespace fs = std::filesystem;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";

// One safetensors file.
struct Shard {
  std::string path;
  FileMapping mapping;
  std::vector<Tensor> tensors;  // their bytes are in `mapping`
};

absl::Status Truncated(const ReadOnlyFile& file, uint64_t wanted) {
  return absl::InvalidArgumentError(absl::StrCat(
      file.path(),
      ": ends in its header: download it again: ", WithCommas(static_cast<uint64_t>(file.size())),
      " of at least ", WithCommas(wanted), " bytes are there"));
}

absl::StatusOr<Shard> OpenShard(const std::string& path) {
  const absl::StatusOr<ReadOnlyFile> file = ReadOnlyFile::Open(path);
  if (!file.ok()) return file.status();
  // The header is read, not mapped: so that no page of the mapping is touched, and a file that
  // shrinks is an error.
  const absl::StatusOr<std::string> start = file->Read(0, kHeaderLengthBytes);
  if (!start.ok()) return start.status();
  if (start->size() < kHeaderLengthBytes) return Truncated(*file, kHeaderLengthBytes);
  const uint64_t length = DecodeHeaderLength(*start);
  if (length > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": a header of ", WithCommas(length), " bytes, and safetensors has ",
                     WithCommas(kMaxHeaderBytes), " at most: download it again"));
  }
  const auto header_bytes = static_cast<int64_t>(length);
  const absl::StatusOr<std::string> header = file->Read(kHeaderLengthBytes, header_bytes);
  if (!header.ok()) return header.status();
  if (header->size() < length) return Truncated(*file, kHeaderLengthBytes + length);

  const int64_t data_begin = kHeaderLengthBytes + header_bytes;
  absl::StatusOr<std::vector<TensorPlace>> places =
      ParseSafetensorsHeader(path, *header, file->size() - data_begin);
  if (!places.ok()) return places.status();
  absl::StatusOr<FileMapping> mapping = file->Map();
  if (!mapping.ok()) return mapping.status();

  Shard shard = {path, *std::move(mapping), {}};
  const absl::Span<const std::byte> bytes = shard.mapping.bytes().subspan(data_begin);
  shard.tensors.reserve(places->size());
  for (TensorPlace& place : *places) {
    shard.tensors.push_back({std::move(place.name), place.dtype, std::move(place.shape),
                             bytes.subspan(place.begin, place.end - place.begin)});
  }
  return shard;
}

class MappedCheckpoint : public Checkpoint {
 public:
  // kInvalidArgument if two shards have a tensor of the same name.
  static absl::StatusOr<std::shared_ptr<const MappedCheckpoint>> Make(std::string folder,
                                                                      std::vector<Shard> shards) {
    std::shared_ptr<MappedCheckpoint> checkpoint(
        new MappedCheckpoint(std::move(folder), std::move(shards)));
    const std::vector<Entry>& entries = checkpoint->entries_;
    const auto twin = std::adjacent_find(
        entries.begin(), entries.end(),
        [](const Entry& a, const Entry& b) { return a.tensor->name == b.tensor->name; });
    if (twin != entries.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(twin[1].shard->path, ": ", Shown(twin->tensor->name), ": is in ",
                       twin->shard->path, " too: download both again"));
    }
    return checkpoint;
  }

  const Tensor* Find(absl::string_view name) const override {
    const Entry* const entry = FindEntry(name);
    return entry == nullptr ? nullptr : entry->tensor;
  }

  std::vector<const Tensor*> tensors() const override {
    std::vector<const Tensor*> tensors;
    tensors.reserve(entries_.size());
    for (const Entry& entry : entries_) tensors.push_back(entry.tensor);
    return tensors;
  }

  const std::string& FileOf(const Tensor& tensor) const override {
    const Entry* const entry = FindEntry(tensor.name);
    FABRICAST_CHECK(entry != nullptr) << tensor.name << " in " << folder_;
    return entry->shard->path;
  }

  const std::string& folder() const override { return folder_; }

  int64_t total_bytes() const override {
    int64_t bytes = 0;
    for (const Entry& entry : entries_) bytes += static_cast<int64_t>(entry.tensor->bytes.size());
    return bytes;
  }

  void Release(const Tensor& tensor) const override {
    // Only pages that are the tensor's alone.
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto address = reinterpret_cast<uintptr_t>(tensor.bytes.data());
    const uintptr_t begin = (address + page - 1) / page * page;
    const uintptr_t end = (address + tensor.bytes.size()) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }

 private:
  struct Entry {
    const Tensor* tensor;
    const Shard* shard;
  };

  MappedCheckpoint(std::string folder, std::vector<Shard> shards)
      : folder_(std::move(folder)), shards_(std::move(shards)) {
    for (const Shard& shard : shards_) {
      for (const Tensor& tensor : shard.tensors) entries_.push_back({&tensor, &shard});
    }
    std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
      return std::tie(a.tensor->name, a.shard->path) < std::tie(b.tensor->name, b.shard->path);
    });
  }

  const Entry* FindEntry(absl::string_view name) const {
    const auto entry = std::lower_bound(
        entries_.begin(), entries_.end(), name,
        [](const Entry& entry, absl::string_view wanted) { return entry.tensor->name < wanted; });
    return entry == entries_.end() || entry->tensor->name != name ? nullptr : &*entry;
  }

  const std::string folder_;
  const std::vector<Shard> shards_;
  std::vector<Entry> entries_;  // by name
};

absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenSingle(const std::string& folder,
                                                             const std::string& path) {
  absl::StatusOr<Shard> shard = OpenShard(path);
  if (!shard.ok()) return shard.status();
  std::vector<Shard> shards;
  shards.push_back(*std::move(shard));
  return MappedCheckpoint::Make(folder, std::move(shards));
}

absl::StatusOr<std::vector<IndexEntry>> ReadIndex(const std::string& path) {
  const absl::StatusOr<ReadOnlyFile> file = ReadOnlyFile::Open(path);
  if (!file.ok()) return file.status();
  if (file->size() > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", WithCommas(static_cast<uint64_t>(file->size())), " bytes, and an index has ",
        WithCommas(kMaxHeaderBytes), " at most: give an index of Hugging Face"));
  }
  const absl::StatusOr<std::string> text = file->Read(0, file->size());
  if (!text.ok()) return text.status();
  return ParseShardIndex(path, *text);
}

absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenSharded(const std::string& folder,
                                                              const std::string& index_path) {
  const absl::StatusOr<std::vector<IndexEntry>> index = ReadIndex(index_path);
  if (!index.ok()) return index.status();
  std::map<std::string, std::string> paths;  // of each shard
  for (const IndexEntry& entry : *index) {
    paths.emplace(entry.shard, (fs::path(folder) / entry.shard).string());
  }
  std::vector<Shard> shards;
  for (const auto& [name, path] : paths) {
    absl::StatusOr<Shard> shard = OpenShard(path);
    if (!shard.ok()) return shard.status();
    shards.push_back(*std::move(shard));
  }
  absl::StatusOr<std::shared_ptr<const MappedCheckpoint>> checkpoint =
      MappedCheckpoint::Make(folder, std::move(shards));
  if (!checkpoint.ok()) return checkpoint.status();
  for (const IndexEntry& entry : *index) {
    const Tensor* const tensor = (*checkpoint)->Find(entry.tensor);
    if (tensor == nullptr || (*checkpoint)->FileOf(*tensor) != paths[entry.shard]) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": ", Shown(entry.tensor),
                                                     ": is not in ", entry.shard,
                                                     ": download both again"));
    }
  }
  return checkpoint;
}

// What to do about a folder without a checkpoint that we read.
absl::Status NoCheckpoint(const std::string& folder) {
  std::error_code error;
  fs::directory_iterator files(folder, error);
  for (; !error && files != fs::directory_iterator(); files.increment(error)) {
    const std::string name = files->path().filename().string();
    if (absl::StartsWith(name, "model-") && absl::EndsWith(name, ".safetensors")) {
      return absl::NotFoundError(absl::StrCat(folder, ": has ", Shown(name), " but no ", kIndexFile,
                                              ": download that too"));
    }
    if (absl::StartsWith(name, "pytorch_model") && absl::StrContains(name, ".bin")) {
      return absl::UnimplementedError(
          absl::StrCat(folder, ": has PyTorch weights only (", Shown(name),
                       "): convert them with transformers: save_pretrained(..., "
                       "safe_serialization=True)"));
    }
  }
  return absl::NotFoundError(absl::StrCat(folder, ": has neither ", kSingleFile, " nor ",
                                          kIndexFile,
                                          ": give a checkpoint folder of Hugging Face"));
}

// Also a link to nothing: the message should be about that file.
bool IsThere(const std::string& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Checkpoint>> Checkpoint::Open(const std::string& folder) {
  std::error_code error;
  const fs::file_status status = fs::status(folder, error);
  if (status.type() == fs::file_type::not_found) {
    return absl::NotFoundError(
        absl::StrCat(folder, ": no such folder: give a checkpoint folder of Hugging Face"));
  }
  if (!fs::exists(status)) {
    return absl::Status(absl::ErrnoToStatusCode(error.value()),
                        absl::StrCat(folder, ": cannot be opened: ", error.message()));
  }
  if (!fs::is_directory(status)) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": not a folder: give the folder that holds ", kSingleFile));
  }
  // In this order, as transformers does.
  const std::string single = (fs::path(folder) / kSingleFile).string();
  if (IsThere(single)) return OpenSingle(folder, single);
  const std::string index = (fs::path(folder) / kIndexFile).string();
  if (IsThere(index)) return OpenSharded(folder, index);
  return NoCheckpoint(folder);
}

}  // namespace fabricast
