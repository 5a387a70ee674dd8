#include "topology/topology.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "tools/embed/embedded_file.h"
#include "topology/cluster_files.h"
#include "topology/hardware.h"
#include "topology/nearest_name.h"
#include "topology/router.h"
#include "topology/segment_table.h"
#include "topology/text_proto.h"

namespace fabricast {
namespace {

constexpr char kDefaultNcclCalibration[] = "nccl_2_28";
constexpr std::int64_t kDefaultP2pNetChunkBytes = 131072;  // NCCL's NCCL_P2P_NET_CHUNKSIZE

// "trinity_200g" for "topology/clusters/trinity_200g.txtpb".
absl::string_view Stem(absl::string_view path) {
  return absl::StripSuffix(path.substr(path.rfind('/') + 1), ".txtpb");
}

bool IsInside(int index, std::size_t size) {
  return index >= 0 && static_cast<std::size_t>(index) < size;
}

// A caller's bug, not an input's: there is no status to return.
[[noreturn]] void DieOfIndex(const char* what, int a, int b, std::size_t size) {
  std::fprintf(stderr, "Topology::%s(%d, %d): there are %zu GPUs\n", what, a, b, size);
  std::abort();
}

}  // namespace

struct Topology::State {
  // All routes of one sender, found at the first question.
  struct Row {
    std::once_flag once;
    std::vector<Route> routes;
  };

  State(std::string file, Cluster cluster, Hardware hardware, NcclCalibration nccl,
        std::map<std::string, KernelCalibration> kernels)
      : file(std::move(file)),
        cluster(std::move(cluster)),
        hardware(std::move(hardware)),
        nccl(std::move(nccl)),
        kernels(std::move(kernels)),
        table(MakeSegments(this->hardware, this->nccl.host_staging_gb_s() * 1e9)),
        router(&this->hardware, &table),
        warnings(this->hardware.warnings),
        rows(this->hardware.ranks.size()) {
    for (std::string& warning : SlotWarnings(this->file, this->hardware)) {
      warnings.push_back(std::move(warning));
    }
    for (const int gpu : this->hardware.ranks) {
      const Hardware::Gpu& resolved = this->hardware.gpus[gpu];
      gpus.push_back({.name = resolved.name,
                      .host = this->hardware.hosts[resolved.host].name,
                      .spec = resolved.spec});
    }
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  const std::string file;
  const Cluster cluster;
  const Hardware hardware;
  const NcclCalibration nccl;
  const std::map<std::string, KernelCalibration> kernels;
  const SegmentTable table;
  const Router router;
  std::vector<std::string> warnings;
  std::vector<GpuNode> gpus;
  mutable std::vector<Row> rows;
};

absl::StatusOr<Topology> Topology::Load(const std::string& file_or_name,
                                        const std::vector<Override>& overrides) {
  if (!absl::StrContains(file_or_name, "/") && !absl::StrContains(file_or_name, ".")) {
    const absl::string_view text = BundledText(file_or_name);
    if (!text.empty()) return Parse(file_or_name, text, overrides);
  }
  absl::StatusOr<std::string> text = ReadTextFile(file_or_name);
  if (absl::IsNotFound(text.status())) {
    return absl::NotFoundError(absl::StrCat(text.status().message(),
                                            ", and no cluster of that name is built in",
                                            Suggest(Stem(file_or_name), BundledNames())));
  }
  if (!text.ok()) return text.status();

  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path folder = fs::absolute(file_or_name, error).parent_path();
  const SpecLibrary* specs = &SpecLibrary::Bundled();
  SpecLibrary extended;
  for (const char* name : {"specs", "calibration"}) {
    const fs::path beside = (folder / ".." / name).lexically_normal();
    if (!fs::is_directory(beside, error)) continue;
    if (specs != &extended) extended = *specs;
    specs = &extended;
    const absl::Status status = extended.AddNewFromDirectory(beside.string());
    if (!status.ok()) return status;
  }
  return Parse(file_or_name, *text, overrides, *specs);
}

absl::StatusOr<Topology> Topology::Parse(absl::string_view file, absl::string_view text,
                                         const std::vector<Override>& overrides,
                                         const SpecLibrary& specs) {
  Cluster cluster;
  const absl::Status status = ParseTextProto(file, text, &cluster);
  if (!status.ok()) return status;
  return Create(file, cluster, overrides, specs);
}

absl::StatusOr<Topology> Topology::Create(absl::string_view file, const Cluster& cluster,
                                          const std::vector<Override>& overrides,
                                          const SpecLibrary& specs) {
  Cluster changed = cluster;
  const absl::Status status = ApplyOverrides(file, overrides, &changed);
  if (!status.ok()) return status;
  absl::StatusOr<Hardware> hardware = ResolveHardware(file, changed, specs);
  if (!hardware.ok()) return hardware.status();

  const std::string& named = changed.communication().calibration();
  const std::string calibration = named.empty() ? kDefaultNcclCalibration : named;
  const NcclCalibration* nccl = specs.nccl(calibration);
  if (nccl == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": communication: no NCCL calibration \"",
                                                   calibration, "\"",
                                                   Suggest(calibration, specs.nccl_names())));
  }
  std::map<std::string, KernelCalibration> kernels;
  for (const Hardware::Gpu& gpu : hardware->gpus) {
    kernels[gpu.spec.calibration()] = *specs.kernels(gpu.spec.calibration());
  }
  return Topology(std::make_shared<const State>(std::string(file), std::move(changed),
                                                *std::move(hardware), *nccl, std::move(kernels)));
}

std::vector<std::string> Topology::BundledNames() {
  std::vector<std::string> names;
  for (const EmbeddedFile& file : ClusterFiles()) names.emplace_back(Stem(file.path));
  std::sort(names.begin(), names.end());
  return names;
}

absl::string_view Topology::BundledText(absl::string_view name) {
  for (const EmbeddedFile& file : ClusterFiles()) {
    if (Stem(file.path) == name) return file.contents;
  }
  return "";
}

const std::string& Topology::name() const { return state_->cluster.name(); }
const Cluster& Topology::cluster() const { return state_->cluster; }
absl::Span<const std::string> Topology::warnings() const { return state_->warnings; }
absl::Span<const GpuNode> Topology::gpus() const { return state_->gpus; }
absl::Span<const Segment> Topology::segments() const { return state_->table.segments; }
const NcclCalibration& Topology::nccl() const { return state_->nccl; }
Transport Topology::transport() const { return state_->hardware.transport; }

const Route& Topology::route(int from, int to) const {
  const State& state = *state_;
  const std::size_t count = state.gpus.size();
  if (!IsInside(from, count) || !IsInside(to, count) || from == to) {
    DieOfIndex("route", from, to, count);
  }
  State::Row& row = state.rows[from];
  std::call_once(row.once, [&] {
    row.routes.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
      if (i == static_cast<std::size_t>(from)) continue;
      row.routes[i] = state.router.Find(state.hardware.ranks[from], state.hardware.ranks[i]);
    }
  });
  return row.routes[to];
}

const KernelCalibration& Topology::kernels(int gpu) const {
  if (!IsInside(gpu, state_->gpus.size())) DieOfIndex("kernels", gpu, gpu, state_->gpus.size());
  return state_->kernels.at(state_->gpus[gpu].spec.calibration());
}

int64_t Topology::p2p_net_chunk_bytes() const {
  const Communication& communication = state_->cluster.communication();
  return communication.has_p2p_net_chunk_bytes() ? communication.p2p_net_chunk_bytes()
                                                 : kDefaultP2pNetChunkBytes;
}

int Topology::network_mtu_bytes() const {
  return transport() == TRANSPORT_TCP ? state_->hardware.ethernet_mtu_bytes
                                      : state_->hardware.roce_mtu_bytes;
}

Topology Topology::WithNetworkRate(double gbps) const {
  Hardware hardware = state_->hardware;
  Cluster cluster = state_->cluster;
  // What a switch could do beyond its cabled ports it can do beyond the faster ones too.
  const auto cabled_gbps = [&hardware](const Hardware::Switch& node) {
    double sum = 0;
    for (const int link : node.links) sum += hardware.links[link].rate_gbps;
    return sum;
  };
  std::vector<double> before;
  for (const Hardware::Switch& node : hardware.switches) before.push_back(cabled_gbps(node));
  for (Hardware::Link& link : hardware.links) {
    if (link.a.is_switch && link.b.is_switch) continue;
    link.a.rate_gbps = link.b.rate_gbps = link.rate_gbps = gbps;
  }
  for (std::size_t i = 0; i < hardware.switches.size(); ++i) {
    Hardware::Switch& node = hardware.switches[i];
    if (!node.spec.has_capacity_gbps() || before[i] <= 0) continue;
    node.spec.set_capacity_gbps(node.spec.capacity_gbps() * cabled_gbps(node) / before[i]);
  }
  for (Hardware::Nic& nic : hardware.nics) nic.spec.set_rate_gbps(gbps);
  for (Host& host : *cluster.mutable_hosts()) {
    for (Nic& nic : *host.mutable_nics()) nic.mutable_override()->set_rate_gbps(gbps);
  }
  for (Link& link : *cluster.mutable_links()) {
    // Only cables between switches keep a rate of their own; an end of theirs is "switch.port".
    const auto is_switch = [&](const std::string& end) {
      const std::string owner = end.substr(0, end.find('.'));
      return std::any_of(hardware.switches.begin(), hardware.switches.end(),
                         [&](const Hardware::Switch& node) { return node.name == owner; });
    };
    if (!is_switch(link.a()) || !is_switch(link.b())) link.clear_rate_gbps();
  }
  return Topology(std::make_shared<const State>(
      state_->file, std::move(cluster), std::move(hardware), state_->nccl, state_->kernels));
}

double Topology::network_rate_gbps() const {
  const Hardware& hardware = state_->hardware;
  if (std::all_of(state_->gpus.begin(), state_->gpus.end(),
                  [this](const GpuNode& gpu) { return gpu.host == state_->gpus.front().host; })) {
    return 0;
  }
  // Asking every pair of GPUs takes a while in large clusters, and most have one kind of NIC.
  double least = 0;
  bool alike = true;
  for (const Hardware::Nic& nic : hardware.nics) {
    if (nic.link < 0) continue;
    const double rate = hardware.links[nic.link].rate_gbps;
    alike = alike && (least == 0 || rate == least);
    least = rate;
  }
  if (alike) return least;
  least = 0;
  for (const int from : hardware.ranks) {
    for (const int to : hardware.ranks) {
      if (hardware.gpus[from].host == hardware.gpus[to].host) continue;
      const Router::NicPair nics = state_->router.ChooseNics(from, to);
      for (const int nic : {nics.sender, nics.receiver}) {
        const double rate = hardware.links[hardware.nics[nic].link].rate_gbps;
        least = least == 0 ? rate : std::min(least, rate);
      }
    }
  }
  return least;
}

}  // namespace fabricast
