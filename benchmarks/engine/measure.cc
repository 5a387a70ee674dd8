#include "benchmarks/engine/measure.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iostream>

#include "absl/strings/str_format.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

double Seconds(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

std::string FirstLineOf(const char* command) {
  std::string text;
  if (FILE* pipe = popen(command, "r")) {
    for (int c = fgetc(pipe); c != EOF && c != '\n'; c = fgetc(pipe)) {
      text += static_cast<char>(c);
    }
    pclose(pipe);
  }
  return text.empty() ? "unknown" : text;
}

}  // namespace

double WallSeconds() { return Seconds(CLOCK_MONOTONIC); }
double CpuSeconds() { return Seconds(CLOCK_PROCESS_CPUTIME_ID); }

double Percentile(std::vector<double> values, double q) {
  FABRICAST_CHECK(!values.empty()) << "no values";
  std::sort(values.begin(), values.end());
  const double position = q * static_cast<double>(values.size() - 1);
  const size_t below = static_cast<size_t>(position);
  const size_t above = std::min(below + 1, values.size() - 1);
  const double share = position - static_cast<double>(below);
  return values[below] + share * (values[above] - values[below]);
}

std::string ProcessorName() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown processor";
}

std::string Today() {
  char date[16];
  const time_t now = time(nullptr);
  tm parts;
  strftime(date, sizeof(date), "%Y-%m-%d", gmtime_r(&now, &parts));
  return date;
}

std::string LoadAverage() {
  double load[3] = {0, 0, 0};
  return getloadavg(load, 3) == 3 ? absl::StrFormat("%.1f", load[0]) : "unknown";
}

void PrintEnvironment() {
#ifdef __clang__
  constexpr char kCompiler[] = __VERSION__;
#else
  constexpr char kCompiler[] = "GCC " __VERSION__;
#endif
#ifdef NDEBUG
  constexpr char kBuild[] = "optimised";
#else
  constexpr char kBuild[] = "NOT optimised: use --config=opt";
#endif
  std::cout << "- CPU: " << ProcessorName() << ", " << sysconf(_SC_NPROCESSORS_ONLN)
            << " hardware threads\n"
            << "- Compiler: " << kCompiler << ", " << kBuild << "\n"
            << "- Date: " << Today() << "\n"
            << "- Commit: " << FirstLineOf("git describe --always --dirty 2>/dev/null") << "\n"
            << "- Load average of the machine at the start: " << LoadAverage() << "\n";
}

void EnterWorkingDirectory() {
  if (const char* directory = getenv("BUILD_WORKING_DIRECTORY")) {
    if (chdir(directory) != 0) perror(directory);
  }
}

}  // namespace fabricast
