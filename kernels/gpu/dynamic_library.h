// A library that is loaded when it is first needed, so that the program runs where it is not.
#ifndef FABRICAST_KERNELS_GPU_DYNAMIC_LIBRARY_H_
#define FABRICAST_KERNELS_GPU_DYNAMIC_LIBRARY_H_

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace fabricast {

// Stays loaded: what was made with it belongs to it, and its threads run its code.
class DynamicLibrary {
 public:
  // The first of `candidates` (as dlopen takes them) that can be loaded. kUnavailable: "`name`
  // cannot be loaded (why each was not); `mend`".
  static absl::StatusOr<DynamicLibrary> Open(absl::Span<const std::string> candidates,
                                             absl::string_view name, absl::string_view mend);

  // Null if it has no such symbol.
  template <typename Function>
  void Find(const char* symbol, Function*& function) {
    function = reinterpret_cast<Function*>(Address(symbol));
  }

  // kUnavailable, naming the first symbol that was not found so far: "... it is not `what`".
  absl::Status Complete(absl::string_view what) const;

  const std::string& path() const { return path_; }

 private:
  DynamicLibrary(std::string path, void* handle) : path_(std::move(path)), handle_(handle) {}
  void* Address(const char* symbol);

  std::string path_;  // the candidate
  void* handle_;
  std::string missing_;
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_GPU_DYNAMIC_LIBRARY_H_
