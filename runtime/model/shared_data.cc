#include "runtime/model/shared_data.h"

#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace fabricast {
namespace {

namespace fs = std::filesystem;

// Of the source tree: bazel's runfiles are links into it.
fs::path Checkout() {
  const char* runfiles = std::getenv("TEST_SRCDIR");
  const char* workspace = std::getenv("TEST_WORKSPACE");
  if (runfiles == nullptr || workspace == nullptr) return {};
  std::error_code error;
  const fs::path readme =
      fs::canonical(fs::path(runfiles) / workspace / "runtime/model/README.md", error);
  return error ? fs::path() : readme.parent_path().parent_path().parent_path();
}

}  // namespace

std::string SharedDataFolder() {
  std::error_code error;
  if (const char* folder = std::getenv("FABRICAST_SHARED_DATA")) {
    return fs::is_directory(folder, error) ? folder : "";
  }
  const fs::path checkout = Checkout();
  if (checkout.empty()) return "";
  const fs::path folder = checkout.parent_path() / "shared" / "data";
  return fs::is_directory(folder, error) ? folder.string() : "";
}

}  // namespace fabricast
