#include "benchmarks/transport/iperf3.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

extern char** environ;

namespace fabricast {
namespace {

// What it prints, or kUnavailable if it cannot be started.
absl::StatusOr<std::string> Output(const std::vector<std::string>& arguments) {
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return absl::UnavailableError("no pipe");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], STDOUT_FILENO);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t pid;
  const int error = posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(pipe_fds[1]);
  std::string text;
  if (error == 0) {
    char buffer[4096];
    ssize_t got;
    while ((got = read(pipe_fds[0], buffer, sizeof(buffer))) > 0 || (got < 0 && errno == EINTR)) {
      if (got > 0) text.append(buffer, static_cast<size_t>(got));
    }
    while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  close(pipe_fds[0]);
  if (error != 0) return absl::UnavailableError(absl::StrCat(argv[0], " does not start"));
  return text;
}

}  // namespace

bool HasIperf3() { return Output({"iperf3", "--version"}).ok(); }

absl::Status Iperf3Server(const std::string& ip, int port) {
  return Output({"iperf3", "--server", "--one-off", "--json", "--bind", ip, "--port",
                 absl::StrCat(port), "--idle-timeout", "60"})
      .status();
}

absl::StatusOr<double> Iperf3Client(const std::string& ip, int port, int connections, int seconds) {
  std::string why;
  for (int attempt = 0; attempt < 200; ++attempt) {
    const absl::StatusOr<std::string> text =
        Output({"iperf3", "--client", ip, "--port", absl::StrCat(port), "--json", "--parallel",
                absl::StrCat(connections), "--time", absl::StrCat(seconds), "--omit", "1",
                "--connect-timeout", "1000"});
    if (!text.ok()) return text.status();
    const nlohmann::json report = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (report.is_discarded()) return absl::UnavailableError("iperf3 printed no JSON");
    if (!report.contains("error")) {
      const nlohmann::json bits = report.value(
          nlohmann::json::json_pointer("/end/sum_received/bits_per_second"), nlohmann::json());
      if (!bits.is_number()) return absl::UnavailableError("iperf3 gave no rate");
      return bits.get<double>() / 8;
    }
    why = report["error"].dump();
    if (!absl::StrContains(why, "refused") && !absl::StrContains(why, "busy")) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return absl::UnavailableError(absl::StrCat("iperf3: ", why));
}

}  // namespace fabricast
