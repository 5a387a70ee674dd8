#include "kernels/gpu/dynamic_library.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"

namespace fabricast {

absl::StatusOr<DynamicLibrary> DynamicLibrary::Open(absl::Span<const std::string> candidates,
                                                    absl::string_view name,
                                                    absl::string_view mend) {
  std::string tried;
  for (const std::string& candidate : candidates) {
    void* const handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) return DynamicLibrary(candidate, handle);
    const char* const error = dlerror();
    absl::StrAppend(&tried, tried.empty() ? "" : "; ", error == nullptr ? candidate : error);
  }
  return absl::UnavailableError(absl::StrCat(name, " cannot be loaded (", tried, "); ", mend));
}

absl::Status DynamicLibrary::Complete(absl::string_view what) const {
  if (missing_.empty()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(path_, " lacks ", missing_, "; it is not ", what));
}

void* DynamicLibrary::Address(const char* symbol) {
  void* const address = dlsym(handle_, symbol);
  if (address == nullptr && missing_.empty()) missing_ = symbol;
  return address;
}

}  // namespace fabricast
