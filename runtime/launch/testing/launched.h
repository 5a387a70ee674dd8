// Runs a launcher and collects what the processes print that it starts.
#ifndef FABRICAST_RUNTIME_LAUNCH_TESTING_LAUNCHED_H_
#define FABRICAST_RUNTIME_LAUNCH_TESTING_LAUNCHED_H_

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/launch/child_process.h"

namespace fabricast {

struct Launched {
  ChildExit exit;
  // Lines of JSON, in order; those of several processes are sorted by "rank".
  std::vector<nlohmann::json> places;
  std::string output;  // all of it
};

// Runs `command`, looked for in PATH, to its end. Whatever it leaves behind when this process dies
// dies too. `environment` is added to this process's.
Launched Launch(const std::vector<std::string>& command,
                const std::map<std::string, std::string>& environment = {});

// Whether PATH, or a folder for administrators, has such a program.
bool IsInstalled(const std::string& program);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_LAUNCH_TESTING_LAUNCHED_H_
