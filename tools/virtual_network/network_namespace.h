// Network namespaces without a name: they last as long as somebody holds them open or lives in
// them, so nothing is left of them when a program dies.
#ifndef FABRICAST_TOOLS_VIRTUAL_NETWORK_NETWORK_NAMESPACE_H_
#define FABRICAST_TOOLS_VIRTUAL_NETWORK_NETWORK_NAMESPACE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/virtual_network/file_descriptor.h"

namespace fabricast {

class NetworkNamespace {
 public:
  // As many, new and empty. A caller that may not make network namespaces gets them in a user
  // namespace of their own, which they share, where it is root. kPermissionDenied, with what would
  // give the right, if it may not make that either.
  static absl::StatusOr<std::vector<NetworkNamespace>> Make(int count);

  // Moves the calling process, which has one thread, into this namespace. False, with errno, if it
  // cannot. May be called between fork and exec.
  bool Join() const;

  // Closed by exec; open as long as this is.
  int fd() const { return network_.get(); }
  // How a process that has inherited fd() names it.
  std::string path() const;

 private:
  NetworkNamespace(std::shared_ptr<const FileDescriptor> user, FileDescriptor network);

  std::shared_ptr<const FileDescriptor> user_;  // null: the machine's own
  FileDescriptor network_;
};

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_VIRTUAL_NETWORK_NETWORK_NAMESPACE_H_
