// A file descriptor that closes itself.
#ifndef FABRICAST_TOOLS_VIRTUAL_NETWORK_FILE_DESCRIPTOR_H_
#define FABRICAST_TOOLS_VIRTUAL_NETWORK_FILE_DESCRIPTOR_H_

#include <unistd.h>

#include <utility>

namespace fabricast {

class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    if (this != &other) {
      Close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~FileDescriptor() { Close(); }

  int get() const { return fd_; }  // -1: none
  void Close() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }

 private:
  int fd_ = -1;
};

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_VIRTUAL_NETWORK_FILE_DESCRIPTOR_H_
