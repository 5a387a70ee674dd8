#include "benchmarks/simulator_speed/measure.h"

#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "runtime/check.h"
#include "simulator/isolated.h"

namespace fabricast {
namespace {

double Seconds(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

int64_t PeakRssBytes() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace

uint64_t Fingerprint(const std::string& bytes) {
  uint64_t hash = 14695981039346656037u;
  for (const char byte : bytes) {
    hash ^= static_cast<uint8_t>(byte);
    hash *= 1099511628211u;
  }
  return hash;
}

Stopwatch::Stopwatch(Measurement& into)
    : into_(into), cpu_s_(Seconds(CLOCK_PROCESS_CPUTIME_ID)), wall_s_(Seconds(CLOCK_MONOTONIC)) {}

void Stopwatch::Start() {
  const double cpu_s = Seconds(CLOCK_PROCESS_CPUTIME_ID);
  into_.input_cpu_s = cpu_s - cpu_s_;
  cpu_s_ = cpu_s;
  wall_s_ = Seconds(CLOCK_MONOTONIC);
}

void Stopwatch::Stop() {
  into_.cpu_s = Seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu_s_;
  into_.wall_s = Seconds(CLOCK_MONOTONIC) - wall_s_;
}

absl::StatusOr<Measurement> Measure(const Work& work) {
  const IsolatedTask task = [&work](std::atomic<double>&) -> absl::StatusOr<std::string> {
    Measurement measurement;
    Stopwatch watch(measurement);
    if (absl::Status status = work(watch, measurement); !status.ok()) return status;
    measurement.peak_rss_bytes = PeakRssBytes();
    std::string bytes(sizeof(measurement), '\0');
    memcpy(bytes.data(), &measurement, sizeof(measurement));
    return bytes;
  };
  const absl::StatusOr<std::string> bytes =
      RunIsolated(absl::MakeConstSpan(&task, 1), /*jobs=*/1).front();
  if (!bytes.ok()) return bytes.status();
  Measurement measurement;
  FABRICAST_CHECK(bytes->size() == sizeof(measurement)) << "got " << bytes->size() << " bytes";
  memcpy(&measurement, bytes->data(), sizeof(measurement));
  return measurement;
}

absl::StatusOr<std::vector<Measurement>> MeasureRepeatedly(const Work& work, int repeats) {
  std::vector<Measurement> measurements;
  for (int i = 0; i < repeats; ++i) {
    absl::StatusOr<Measurement> measurement = Measure(work);
    if (!measurement.ok()) return measurement.status();
    if (i > 0 && measurement->fingerprint != measurements.front().fingerprint) {
      return absl::InternalError("the same run gave another result: times would mean nothing");
    }
    measurements.push_back(*measurement);
  }
  return measurements;
}

Measurement Median(std::vector<Measurement> measurements) {
  FABRICAST_CHECK(!measurements.empty()) << "no measurement";
  const auto middle = measurements.begin() + static_cast<ptrdiff_t>(measurements.size() / 2);
  std::nth_element(measurements.begin(), middle, measurements.end(),
                   [](const Measurement& a, const Measurement& b) { return a.cpu_s < b.cpu_s; });
  return *middle;
}

double GrowthExponent(const std::vector<double>& x, const std::vector<double>& y) {
  FABRICAST_CHECK(x.size() == y.size() && x.size() >= 2) << x.size() << " and " << y.size();
  double mean_x = 0;
  double mean_y = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    mean_x += std::log(x[i]) / static_cast<double>(x.size());
    mean_y += std::log(y[i]) / static_cast<double>(x.size());
  }
  double covariance = 0;
  double variance = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double dx = std::log(x[i]) - mean_x;
    covariance += dx * (std::log(y[i]) - mean_y);
    variance += dx * dx;
  }
  return covariance / variance;
}

}  // namespace fabricast
