#include "runtime/launch/testing/launched.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <future>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/check.h"

namespace fabricast {

Launched Launch(const std::vector<std::string>& command,
                const std::map<std::string, std::string>& environment) {
  Launched launched;
  std::promise<ChildExit> ended;
  ChildOptions options;
  options.program = "/usr/bin/env";
  options.arguments = command;
  options.environment = environment;
  options.on_line = [&launched](absl::string_view line) {
    absl::StrAppend(&launched.output, line, "\n");
    nlohmann::json place = nlohmann::json::parse(line.begin(), line.end(), nullptr,
                                                 /*allow_exceptions=*/false);
    if (!place.is_discarded()) launched.places.push_back(std::move(place));
  };
  options.on_exit = [&ended](const ChildExit& exit) { ended.set_value(exit); };
  ChildProcesses children;
  const absl::StatusOr<pid_t> pid = children.Start(std::move(options));
  FABRICAST_CHECK(pid.ok()) << pid.status();
  launched.exit = ended.get_future().get();
  std::stable_sort(launched.places.begin(), launched.places.end(),
                   [](const nlohmann::json& a, const nlohmann::json& b) {
                     const auto rank = [](const nlohmann::json& place) {
                       return place.is_object() ? place.value("rank", -1) : -1;
                     };
                     return rank(a) < rank(b);
                   });
  return launched;
}

bool IsInstalled(const std::string& program) {
  const char* const path = std::getenv("PATH");
  const std::string folders = absl::StrCat(path == nullptr ? "" : path, ":/usr/sbin:/sbin");
  for (const absl::string_view folder : absl::StrSplit(folders, ':', absl::SkipEmpty())) {
    if (access(absl::StrCat(folder, "/", program).c_str(), X_OK) == 0) return true;
  }
  return false;
}

}  // namespace fabricast
