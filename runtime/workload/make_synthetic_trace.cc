// Prints traces/synthetic_hour.csv:
//
//   bazel run //runtime/workload:make_synthetic_trace > runtime/workload/traces/synthetic_hour.csv
#include <iostream>

#include "runtime/workload/synthetic_trace.h"

int main() {
  std::cout << fabricast::SyntheticHourCsv() << std::flush;
  return std::cout ? 0 : 1;
}
