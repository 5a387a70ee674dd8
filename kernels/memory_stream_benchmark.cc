// Prints what a GPU's memory gives, reading and copying, in a burst and under lasting load.

#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "kernels/memory_stream.h"
#include "nlohmann/json.hpp"

namespace fabricast {
namespace {

struct Row {
  std::string name;
  MemoryStreamMeasurement measured;
};

void PrintTable(const std::vector<Row>& rows) {
  const MemoryStreamMeasurement& first = rows.front().measured;
  std::cout << absl::StrFormat("%s, peak %.0f GB/s by its memory clock and bus width\n",
                               first.gpu_name, first.peak_bytes_per_second / 1e9)
            << absl::StrFormat("buffers of %.2f GiB, %.1f s each; GB = 10^9 bytes\n\n",
                               static_cast<double>(first.buffer_bytes) / (1 << 30), first.seconds)
            << absl::StrFormat("%-6s%10s%12s%10s%10s   %s\n", "GB/s", "burst", "sustained",
                               "median", "p99", "under load");
  for (const Row& row : rows) {
    const StreamRates& rates = row.measured.rates;
    std::cout << absl::StrFormat("%-6s%10.1f%12.1f%10.1f%10.1f   ", row.name, rates.burst / 1e9,
                                 rates.sustained / 1e9, rates.median / 1e9, rates.p99 / 1e9);
    if (const std::optional<GpuReading>& sensors = row.measured.sensors) {
      std::cout << absl::StrFormat("SM %.0f MHz, memory %.0f MHz, %.0f W, %.0f C\n",
                                   sensors->sm_clock_mhz, sensors->memory_clock_mhz,
                                   sensors->power_watts, sensors->temperature_celsius);
    } else {
      std::cout << "(no NVML)\n";
    }
  }
}

void PrintJson(const std::vector<Row>& rows) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const Row& row : rows) {
    const MemoryStreamMeasurement& measured = row.measured;
    nlohmann::ordered_json entry = {
        {"kind", row.name},
        {"gpu", measured.gpu_name},
        {"peak_bytes_per_second", measured.peak_bytes_per_second},
        {"buffer_bytes", measured.buffer_bytes},
        {"seconds", measured.seconds},
        {"samples", measured.samples},
        {"burst_bytes_per_second", measured.rates.burst},
        {"sustained_bytes_per_second", measured.rates.sustained},
        {"median_bytes_per_second", measured.rates.median},
        {"p99_bytes_per_second", measured.rates.p99},
    };
    if (measured.sensors.has_value()) {
      entry["sm_clock_mhz"] = measured.sensors->sm_clock_mhz;
      entry["memory_clock_mhz"] = measured.sensors->memory_clock_mhz;
      entry["power_watts"] = measured.sensors->power_watts;
      entry["temperature_celsius"] = measured.sensors->temperature_celsius;
    }
    json.push_back(entry);
  }
  std::cout << json.dump(2) << "\n";
}

int Main(int argc, char** argv) {
  CLI::App app("Measures the bandwidth of a GPU's memory.");
  MemoryStreamOptions options;
  double buffer_gib = 2;
  bool json = false;
  app.add_option("--device", options.device, "which GPU, as CUDA counts them");
  app.add_option("--buffer_gib", buffer_gib, "size of a buffer")->check(CLI::Range(0.01, 1024.0));
  app.add_option("--seconds", options.seconds, "how long for each kind")
      ->check(CLI::Range(0.01, 3600.0));
  app.add_flag("--json", json, "print JSON");
  CLI11_PARSE(app, argc, argv);
  options.buffer_bytes = static_cast<size_t>(buffer_gib * (1 << 30));

  std::vector<Row> rows;
  for (const StreamKind kind : {StreamKind::kRead, StreamKind::kCopy}) {
    const std::string name = kind == StreamKind::kRead ? "read" : "copy";
    absl::StatusOr<MemoryStreamMeasurement> measured = MeasureMemoryStream(kind, options);
    if (!measured.ok()) {
      std::cerr << name << ": " << measured.status() << "\n";
      return 1;
    }
    rows.push_back({name, *std::move(measured)});
  }
  json ? PrintJson(rows) : PrintTable(rows);
  return 0;
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) { return fabricast::Main(argc, argv); }
