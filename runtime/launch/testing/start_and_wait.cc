// Starts `sleep` as a child from a thread that ends at once, prints its pid, and waits to be
// killed.
#include <unistd.h>

#include <iostream>
#include <thread>

#include "runtime/launch/child_process.h"

int main() {
  fabricast::ChildProcesses children;
  std::thread([&children] {
    const absl::StatusOr<pid_t> pid =
        children.Start({.program = "/bin/sleep", .arguments = {"1000"}});
    std::cout << (pid.ok() ? *pid : -1) << std::endl;
  }).join();
  while (true) pause();
}
