// Runs a piece of work in a child process of its own and says what it took: SimGrid keeps one
// engine a process, and a process's peak of memory never falls.
#ifndef FABRICAST_BENCHMARKS_SIMULATOR_SPEED_MEASURE_H_
#define FABRICAST_BENCHMARKS_SIMULATOR_SPEED_MEASURE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace fabricast {

// What a child reports. Copied byte for byte through a pipe.
struct Measurement {
  double input_cpu_s = 0;  // reading topology, model and workload, planning
  double cpu_s = 0;        // of the work itself, user and system
  double wall_s = 0;
  int64_t peak_rss_bytes = 0;  // of the whole child, program and inputs included
  // What the work did.
  int64_t events = 0;
  int64_t requests = 0;
  int64_t finished = 0;
  int64_t micro_batches = 0;  // of the first stage
  int64_t entries = 0;        // of all micro-batches
  double arrivals_s = 0;      // when the last request arrives; 0 in a closed loop
  double simulated_s = 0;
  uint64_t fingerprint = 0;  // of all that it computed; equal results have equal ones
};

// FNV-1a.
uint64_t Fingerprint(const std::string& bytes);

// Times the work inside a child. The child calls Start() when its inputs are ready and Stop() at
// the end of what is measured.
class Stopwatch {
 public:
  explicit Stopwatch(Measurement& into);
  void Start();
  void Stop();

 private:
  Measurement& into_;
  double cpu_s_;
  double wall_s_;
};

using Work = std::function<absl::Status(Stopwatch& watch, Measurement& measurement)>;

// Runs `work` once, alone, in a fork of this process. Keep the parent small: its memory counts.
absl::StatusOr<Measurement> Measure(const Work& work);

// Runs it `repeats` times and fails if the fingerprints differ.
absl::StatusOr<std::vector<Measurement>> MeasureRepeatedly(const Work& work, int repeats);

// The one whose CPU time is the median.
Measurement Median(std::vector<Measurement> measurements);

// Slope of log(y) over log(x), least squares: 1 is linear growth. All values above 0, two x at
// least.
double GrowthExponent(const std::vector<double>& x, const std::vector<double>& y);

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_SIMULATOR_SPEED_MEASURE_H_
