// What TCP transport costs beside plain blocking sockets, and iperf3. Prints Markdown; see
// benchmarks/README.md.
//
// Both sides go through the same list of trials; in one process on the loopback interface, or as
// --serve and --dial with the same other flags.

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <future>
#include <iostream>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/transport/iperf3.h"
#include "benchmarks/transport/loops.h"
#include "runtime/check.h"
#include "runtime/transport/tcp.h"

namespace fabricast {
namespace {

struct Flags {
  std::string serve;
  std::string dial;
  std::string address = "127.0.0.1:27310";
  bool iperf3 = false;
  int repeats = 5;
  int seconds = 2;
  double gigabytes = 2;
  bool quick = false;
};

enum class What { kVerify, kStream, kPlainStream, kPingPong, kPlainPingPong, kIperf3 };

struct Trial {
  What what;
  int streams = 1;
  Load load;
  auto key() const { return std::make_tuple(what, streams, load.message_bytes); }
};

// All repeats: bytes a second of streams, seconds of round trips; and this process's own CPU
// seconds a byte, which suffer less from neighbours.
struct Figure {
  std::vector<double> values;
  std::vector<double> cpu;
};
using Figures = std::map<decltype(std::declval<Trial>().key()), Figure>;

double CpuSeconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

double Percentile(std::vector<double> values, double q) {
  FABRICAST_CHECK(!values.empty()) << "no values";
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

constexpr size_t kKiB = size_t{1} << 10;
constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kStreamed[] = {4 * kKiB, 64 * kKiB, 256 * kKiB, kMiB,
                                4 * kMiB, 16 * kMiB, 64 * kMiB};
constexpr size_t kBounced[] = {0, 64, 4 * kKiB, 64 * kKiB, kMiB};
constexpr int kStreams[] = {1, 2, 4};

// Every repeat goes through all settings, so that a neighbour's burst hits one repeat of each; what
// is compared is next to one another.
std::vector<Trial> Trials(const Flags& flags) {
  std::vector<Trial> trials;
  for (const int streams : kStreams) {
    for (const size_t bytes : {size_t{0}, size_t{1}, 4 * kKiB, 3 * kMiB + 1}) {
      trials.push_back({What::kVerify, streams, {bytes, 40}});
    }
  }
  for (int repeat = 0; repeat < flags.repeats; ++repeat) {
    for (const size_t bytes : kBounced) {
      const Load load = {bytes, flags.quick ? 20 : bytes >= kMiB ? 500 : 5000};
      trials.push_back({What::kPingPong, 1, load});
      trials.push_back({What::kPlainPingPong, 1, load});
    }
    for (const size_t bytes : kStreamed) {
      const double all = flags.quick ? 1e6 : 1e9 * flags.gigabytes * (bytes < 64 * kKiB ? 0.25 : 1);
      const Load load = {bytes, std::max(1, static_cast<int>(all / static_cast<double>(bytes)))};
      trials.push_back({What::kPlainStream, 1, load});
      for (const int streams : kStreams) trials.push_back({What::kStream, streams, load});
    }
    for (const int streams : kStreams) {
      if (!flags.iperf3) break;
      const int messages = flags.quick ? 2 : static_cast<int>(1e9 * flags.gigabytes / kMiB);
      trials.push_back({What::kIperf3, streams, {0, flags.seconds}});
      trials.push_back({What::kStream, streams, {kMiB, messages}});
    }
  }
  return trials;
}

// Where the server is; the two ports after its own are those of plain sockets and iperf3.
struct Place {
  std::string ip;
  int port = 0;
  std::string address(int beyond) const {
    return ip.find(':') == std::string::npos ? absl::StrCat(ip, ":", port + beyond)
                                             : absl::StrCat("[", ip, "]:", port + beyond);
  }
};

Place PlaceOf(const std::string& address) {
  const absl::StatusOr<SocketAddress> parsed = SocketAddress::Parse(address);
  FABRICAST_CHECK(parsed.ok()) << parsed.status();
  const size_t colon = address.rfind(':');
  std::string ip = address.substr(0, colon);
  if (ip.front() == '[') ip = ip.substr(1, ip.size() - 2);
  return {ip, std::atoi(address.c_str() + colon + 1)};
}

std::unique_ptr<StageTransport> Join(const Place& server, int stage, int streams, size_t number) {
  const TcpOptions options = {.streams = streams};
  const bool serves = stage == 1;
  const bool v6 = server.ip.find(':') != std::string::npos;
  const auto endpoint =
      TcpEndpoint::Listen(serves ? server.ip
                          : v6   ? "::"
                                 : "0.0.0.0",
                          serves ? server.port : 0, SharedSecret("benchmarks/transport"), options);
  FABRICAST_CHECK(endpoint.ok()) << endpoint.status();
  TcpGroup group;
  group.session = absl::StrCat("trial ", number);
  group.stage = stage;
  group.peers[1 - stage] = server.address(0);
  auto joined = (*endpoint)->Connect(group, absl::Now() + absl::Minutes(1));
  FABRICAST_CHECK(joined.ok()) << joined.status();
  return *std::move(joined);
}

// The server stays until the client closes: what has left has not arrived.
void WaitUntilClosed(StageTransport& end, int peer) {
  std::promise<void> ended;
  const absl::Status status = end.Receive(peer, {}, [&ended](absl::Status) { ended.set_value(); });
  if (status.ok()) ended.get_future().wait();
}

void Serve(const Place& place, const std::vector<Trial>& trials) {
  for (size_t i = 0; i < trials.size(); ++i) {
    const Trial& trial = trials[i];
    if (trial.what == What::kIperf3) {
      const absl::Status status = Iperf3Server(place.ip, place.port + 2);
      FABRICAST_CHECK(status.ok()) << status;
    } else if (trial.what == What::kPlainStream || trial.what == What::kPlainPingPong) {
      const UniqueFd socket = PlainAccept(*SocketAddress::Parse(place.address(1)));
      if (trial.what == What::kPlainStream) PlainStreamServer(socket, trial.load);
      if (trial.what == What::kPlainPingPong) PlainPingPongServer(socket, trial.load);
    } else {
      const std::unique_ptr<StageTransport> end = Join(place, 1, trial.streams, i);
      if (trial.what == What::kPingPong) {
        PingPongServer(*end, trial.load);
      } else {
        StreamServer(*end, trial.load, trial.what == What::kVerify);
      }
      WaitUntilClosed(*end, 0);
    }
  }
}

Figures Measure(const Place& place, const std::vector<Trial>& trials) {
  Figures figures;
  for (size_t i = 0; i < trials.size(); ++i) {
    const Trial& trial = trials[i];
    std::vector<double>& out = figures[trial.key()].values;
    const double cpu = CpuSeconds();
    const double bytes = static_cast<double>(trial.load.message_bytes) * trial.load.messages;
    const auto add = [&out](const std::vector<double>& seconds) {
      out.insert(out.end(), seconds.begin(), seconds.end());
    };
    if (trial.what == What::kIperf3) {
      const absl::StatusOr<double> rate =
          Iperf3Client(place.ip, place.port + 2, trial.streams, trial.load.messages);
      FABRICAST_CHECK(rate.ok()) << rate.status();
      out.push_back(*rate);
    } else if (trial.what == What::kPlainStream || trial.what == What::kPlainPingPong) {
      const UniqueFd socket = PlainDial(*SocketAddress::Parse(place.address(1)));
      if (trial.what == What::kPlainPingPong) add(PlainPingPongClient(socket, trial.load));
      if (trial.what == What::kPlainStream) {
        out.push_back(bytes / PlainStreamClient(socket, trial.load));
      }
    } else {
      const std::unique_ptr<StageTransport> end = Join(place, 0, trial.streams, i);
      if (trial.what == What::kPingPong) {
        add(PingPongClient(*end, trial.load));
      } else {
        out.push_back(bytes / StreamClient(*end, trial.load));
      }
    }
    figures[trial.key()].cpu.push_back((CpuSeconds() - cpu) / std::max(bytes, 1.0));
  }
  return figures;
}

std::string SizeName(size_t bytes) {
  if (bytes >= kMiB) return absl::StrCat(bytes / kMiB, " MiB");
  return bytes >= kKiB ? absl::StrCat(bytes / kKiB, " KiB") : absl::StrCat(bytes, " B");
}

void PrintEnvironment() {
  std::string processor = "unknown";
  std::ifstream cpus("/proc/cpuinfo");
  for (std::string line; std::getline(cpus, line);) {
    if (line.rfind("model name", 0) == 0) processor = line.substr(line.find(": ") + 2);
  }
  double load[3] = {0, 0, 0};
  (void)!getloadavg(load, 3);
#ifdef NDEBUG
  constexpr char kBuild[] = "optimised";
#else
  constexpr char kBuild[] = "NOT optimised: use --config=opt";
#endif
  std::cout << "- CPU: " << processor << ", " << sysconf(_SC_NPROCESSORS_ONLN)
            << " hardware threads\n- Build: " << kBuild
            << absl::StrFormat("\n- Load average of the machine at the start: %.1f\n", load[0]);
}

void Print(const Flags& flags, const Figures& figures, const std::string& where) {
  const auto of = [&figures](What what, int streams, size_t bytes, double q) {
    return Percentile(figures.at({what, streams, bytes}).values, q);
  };
  const auto cpu = [&figures](What what, int streams, size_t bytes) {
    return 1e9 * Percentile(figures.at({what, streams, bytes}).cpu, 0.5);
  };
  std::cout
      << "\nVerified: messages of 0 B to 3 MiB arrive as they were, on 1, 2 and 4 streams.\n"
      << "\n## Round trips, " << where
      << "\n\nMicroseconds. Plain: a blocking socket with TCP_NODELAY; no bytes are one there."
      << "\n\n| message | p50 | plain p50 | ratio | p99 | plain p99 |\n"
      << "| ---: | ---: | ---: | ---: | ---: | ---: |\n";
  for (const size_t bytes : kBounced) {
    const double p50 = 1e6 * of(What::kPingPong, 1, bytes, 0.5);
    const double plain = 1e6 * of(What::kPlainPingPong, 1, bytes, 0.5);
    std::cout << absl::StrFormat("| %s | %.1f | %.1f | %.2f | %.1f | %.1f |\n", SizeName(bytes),
                                 p50, plain, p50 / plain, 1e6 * of(What::kPingPong, 1, bytes, 0.99),
                                 1e6 * of(What::kPlainPingPong, 1, bytes, 0.99));
  }
  std::cout << "\n## Streams, " << where << "\n\nGB/s, and CPU seconds a GB of "
            << (flags.dial.empty() ? "both sides" : "this side") << "; medians of " << flags.repeats
            << ". The ratios are those of one stream to a plain one.\n"
            << "\n| message | plain | 1 stream | 2 | 4 | ratio | CPU: plain | 1 stream | 2 | 4 | "
               "ratio |\n"
            << "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
  for (const size_t bytes : kStreamed) {
    const double plain = of(What::kPlainStream, 1, bytes, 0.5) / 1e9;
    const double one = of(What::kStream, 1, bytes, 0.5) / 1e9;
    const double plain_cpu = cpu(What::kPlainStream, 1, bytes);
    const double one_cpu = cpu(What::kStream, 1, bytes);
    std::cout << absl::StrFormat("| %s | %.2f | %.2f | %.2f | %.2f | %.2f | ", SizeName(bytes),
                                 plain, one, of(What::kStream, 2, bytes, 0.5) / 1e9,
                                 of(What::kStream, 4, bytes, 0.5) / 1e9, one / plain)
              << absl::StrFormat("%.2f | %.2f | %.2f | %.2f | %.2f |\n", plain_cpu, one_cpu,
                                 cpu(What::kStream, 2, bytes), cpu(What::kStream, 4, bytes),
                                 one_cpu / plain_cpu);
  }
  if (!flags.iperf3) return;
  std::cout << "\n## Beside iperf3, " << where << "\n\nGB/s, messages and writes of "
            << "1 MiB, as many connections each; medians of " << flags.repeats
            << ". Bar: 0.9 of iperf3.\n\n| streams | iperf3 | transport | ratio | |\n"
            << "| ---: | ---: | ---: | ---: | --- |\n";
  for (const int streams : kStreams) {
    const double theirs = of(What::kIperf3, streams, 0, 0.5) / 1e9;
    const double ours = of(What::kStream, streams, kMiB, 0.5) / 1e9;
    std::cout << absl::StrFormat("| %d | %.3f | %.3f | %.2f | %s |\n", streams, theirs, ours,
                                 ours / theirs, ours >= 0.9 * theirs ? "met" : "MISSED");
  }
}

// As two hosts: each side has half of the processors, and its threads and children inherit them. On
// one processor, the reader of a long message would wait until the writer has slept.
void TakeHalf(bool second) {
  cpu_set_t all;
  if (sched_getaffinity(0, sizeof(all), &all) != 0 || CPU_COUNT(&all) < 2) return;
  cpu_set_t half;
  CPU_ZERO(&half);
  int seen = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &all)) continue;
    if ((2 * seen++ >= CPU_COUNT(&all)) == second) CPU_SET(cpu, &half);
  }
  sched_setaffinity(0, sizeof(half), &half);
}

int Run(Flags flags) {
  if (flags.quick) {
    flags.repeats = 1;
    flags.seconds = 1;
  }
  if (flags.iperf3 && !HasIperf3()) {
    std::cerr << "transport: iperf3 is not there: apt-get install iperf3\n";
    return 1;
  }
  const std::vector<Trial> trials = Trials(flags);
  if (!flags.serve.empty()) {
    Serve(PlaceOf(flags.serve), trials);
    return 0;
  }
  std::cout << "# TCP transport\n\n";
  PrintEnvironment();
  if (!flags.dial.empty()) {
    Print(flags, Measure(PlaceOf(flags.dial), trials), "to " + flags.dial);
    return 0;
  }
  const Place place = PlaceOf(flags.address);
  std::thread server([&] {
    TakeHalf(/*second=*/true);
    Serve(place, trials);
  });
  TakeHalf(/*second=*/false);
  const Figures figures = Measure(place, trials);
  server.join();
  Print(flags, figures, "on one machine");
  return 0;
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) {
  fabricast::Flags flags;
  CLI::App app("Measures TCP transport beside plain sockets and iperf3.");
  app.add_option("--address", flags.address,
                 "Without --serve and --dial: an address and the first of three ports")
      ->capture_default_str();
  auto* serve = app.add_option("--serve", flags.serve, "Be the far side, at ADDRESS:PORT");
  app.add_option("--dial", flags.dial, "Measure against the far side at ADDRESS:PORT")
      ->excludes(serve);
  app.add_flag("--iperf3", flags.iperf3, "Also measure the program iperf3, in turns");
  app.add_option("--repeats", flags.repeats, "Of each trial")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--seconds", flags.seconds, "Of each run of iperf3, after one of warming up")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--gigabytes", flags.gigabytes, "In each stream; choose some seconds' worth")
      ->check(CLI::Range(0.001, 1000.0))
      ->capture_default_str();
  app.add_flag("--quick", flags.quick, "Small sizes, to see that it works; figures mean nothing");
  CLI11_PARSE(app, argc, argv);
  return fabricast::Run(flags);
}
