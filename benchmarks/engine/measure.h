// Clocks, percentiles and the lines that name the machine.
#ifndef FABRICAST_BENCHMARKS_ENGINE_MEASURE_H_
#define FABRICAST_BENCHMARKS_ENGINE_MEASURE_H_

#include <string>
#include <vector>

namespace fabricast {

double WallSeconds();  // monotonic
double CpuSeconds();   // of the whole process, user and system

// The value at position q (n - 1) of the sorted values, linear between neighbours. CHECKs that
// there is one.
double Percentile(std::vector<double> values, double q);
inline double Median(const std::vector<double>& values) { return Percentile(values, 0.5); }
// Of times on a machine that others use too, who only ever add: a tenth is shorter.
inline double Undisturbed(const std::vector<double>& seconds) { return Percentile(seconds, 0.1); }

std::string ProcessorName();
std::string Today();  // UTC, "2026-11-22"
std::string LoadAverage();
// Processor, compiler, date, commit, load: lines of a Markdown list on standard output.
void PrintEnvironment();

// `bazel run` starts programs elsewhere: goes to where the user is.
void EnterWorkingDirectory();

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_ENGINE_MEASURE_H_
