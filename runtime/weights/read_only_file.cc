#include "runtime/weights/read_only_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

// https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
constexpr absl::string_view kLfsPointer = "version https://git-lfs.github.com/spec/";

absl::Status SystemError(absl::string_view path, absl::string_view what, int error) {
  return absl::Status(absl::ErrnoToStatusCode(error),
                      absl::StrCat(path, ": ", what, ": ", std::strerror(error)));
}

}  // namespace

FileMapping::~FileMapping() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

absl::StatusOr<ReadOnlyFile> ReadOnlyFile::Open(const std::string& path) {
  // Without O_NONBLOCK, a named pipe waits for its writer.
  ReadOnlyFile file(path, open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.descriptor_ < 0 && errno == ENOENT) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file: download it"));
  }
  if (file.descriptor_ < 0) return SystemError(path, "cannot be opened", errno);
  struct stat status;
  if (fstat(file.descriptor_, &status) != 0) return SystemError(path, "cannot be opened", errno);
  if (!S_ISREG(status.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is a ", S_ISDIR(status.st_mode) ? "folder" : "device or pipe",
                     " instead of a file: download it again"));
  }
  file.size_ = status.st_size;
  absl::StatusOr<std::string> start = file.Read(0, kLfsPointer.size());
  if (!start.ok()) return start.status();
  if (*start == kLfsPointer) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is a Git LFS pointer: run git lfs pull"));
  }
  return file;
}

ReadOnlyFile::~ReadOnlyFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

absl::StatusOr<std::string> ReadOnlyFile::Read(int64_t offset, int64_t bytes) const {
  std::string result(std::clamp<int64_t>(size_ - offset, 0, bytes), '\0');
  size_t filled = 0;
  while (filled < result.size()) {
    const ssize_t count = pread(descriptor_, result.data() + filled, result.size() - filled,
                                offset + static_cast<int64_t>(filled));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return SystemError(path_, "cannot be read", errno);
    if (count == 0) break;  // it has shrunk meanwhile
    filled += static_cast<size_t>(count);
  }
  result.resize(filled);
  return result;
}

absl::StatusOr<FileMapping> ReadOnlyFile::Map() const {
  FABRICAST_CHECK(size_ > 0) << path_;
  const auto bytes = static_cast<size_t>(size_);
  void* const address = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor_, 0);
  if (address == MAP_FAILED) return SystemError(path_, "cannot be mapped into memory", errno);
  return FileMapping(absl::MakeConstSpan(static_cast<const std::byte*>(address), bytes));
}

}  // namespace fabricast
