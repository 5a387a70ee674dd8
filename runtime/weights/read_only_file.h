// A file of a checkpoint, open for reading.
#ifndef FABRICAST_RUNTIME_WEIGHTS_READ_ONLY_FILE_H_
#define FABRICAST_RUNTIME_WEIGHTS_READ_ONLY_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace fabricast {

// The bytes of a file, mapped read-only; none are read before they are touched. If the file
// shrinks while it is mapped, touching what is gone ends the process with SIGBUS.
class FileMapping {
 public:
  FileMapping() = default;
  explicit FileMapping(absl::Span<const std::byte> bytes) : bytes_(bytes) {}
  FileMapping(FileMapping&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  FileMapping& operator=(FileMapping&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~FileMapping();

  absl::Span<const std::byte> bytes() const { return bytes_; }

 private:
  absl::Span<const std::byte> bytes_;
};

class ReadOnlyFile {
 public:
  // kNotFound, kPermissionDenied or what else the system says, and kInvalidArgument if `path` is
  // not a regular file or is a pointer of Git LFS; all name `path`.
  static absl::StatusOr<ReadOnlyFile> Open(const std::string& path);

  ReadOnlyFile(ReadOnlyFile&& other) noexcept
      : path_(std::move(other.path_)),
        descriptor_(std::exchange(other.descriptor_, -1)),
        size_(other.size_) {}
  ReadOnlyFile& operator=(ReadOnlyFile&&) = delete;
  ~ReadOnlyFile();

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // as it was when the file was opened

  // `bytes` bytes from `offset` on, or fewer if the file ends there.
  absl::StatusOr<std::string> Read(int64_t offset, int64_t bytes) const;

  // All of the file, which is not empty. Outlives this.
  absl::StatusOr<FileMapping> Map() const;

 private:
  ReadOnlyFile(std::string path, int descriptor)
      : path_(std::move(path)), descriptor_(descriptor) {}

  std::string path_;
  int descriptor_;
  int64_t size_ = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WEIGHTS_READ_ONLY_FILE_H_
