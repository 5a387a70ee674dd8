// fabricast topology validate | show | route, fabricast models, fabricast workloads.

#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/cost/communication_cost.h"
#include "runtime/model/model.h"
#include "runtime/workload/workload.h"
#include "tools/fabricast/commands.h"
#include "tools/fabricast/inputs.h"
#include "tools/fabricast/table.h"

namespace fabricast {
namespace {

struct TopologyCommandFlags {
  std::string file;
  std::vector<std::string> files;
  std::string from;
  std::string to;
  TopologyFlags topology;
};

int Validate(const TopologyCommandFlags& flags) {
  int status = 0;
  for (const std::string& file : flags.files) {
    absl::StatusOr<std::vector<LabelledTopology>> topologies =
        LoadTopologies({file}, flags.topology);
    if (!topologies.ok()) {
      status = Fail(topologies.status());
      continue;
    }
    for (const LabelledTopology& labelled : *topologies) {
      for (const std::string& warning : labelled.topology.warnings()) {
        std::cout << "warning: " << warning << "\n";
      }
      std::cout << absl::StrFormat("%s: sound: %d GPUs, %d directed segments\n", labelled.label,
                                   labelled.topology.gpus().size(),
                                   labelled.topology.segments().size());
    }
  }
  return status;
}

std::string RouteRate(const Topology& topology, const Route& route) {
  return absl::StrFormat("%.2f GB/s, bound by %s", route.payload_bytes_per_s / 1e9,
                         topology.segments()[route.bottleneck].name);
}

int Show(const TopologyCommandFlags& flags) {
  absl::StatusOr<std::vector<LabelledTopology>> topologies =
      LoadTopologies({flags.file}, flags.topology);
  if (!topologies.ok()) return Fail(topologies.status());
  for (const LabelledTopology& labelled : *topologies) {
    const Topology& topology = labelled.topology;
    std::cout << labelled.label;
    if (!topology.cluster().description().empty()) {
      std::cout << ": " << topology.cluster().description();
    }
    std::cout << "\n";
    Table table;
    table.Section("GPUs, in rank order");
    table.Row("", {"spec", "memory", "bandwidth", "BF16", "power"});
    for (const GpuNode& gpu : topology.gpus()) {
      table.Row(gpu.name, {gpu.spec.name(), absl::StrFormat("%.0f GB", gpu.spec.memory_gb()),
                           absl::StrFormat("%.0f GB/s", gpu.spec.memory_bandwidth_gb_s()),
                           absl::StrFormat("%.*f TFLOPS", gpu.spec.bf16_tflops() < 10 ? 2 : 0,
                                           gpu.spec.bf16_tflops()),
                           absl::StrFormat("%.0f W", gpu.spec.power_limit_w())});
    }
    table.Section("From each GPU to the next");
    const int n = static_cast<int>(topology.gpus().size());
    for (int from = 0; from + 1 < n; ++from) {
      const Route& route = topology.route(from, from + 1);
      table.Row(absl::StrCat(topology.gpus()[from].name, " -> ", topology.gpus()[from + 1].name),
                {std::string(PathKindName(route.kind)), RouteRate(topology, route)});
    }
    table.Print(std::cout);
    for (const std::string& warning : topology.warnings()) {
      std::cout << "warning: " << warning << "\n";
    }
  }
  return 0;
}

absl::StatusOr<int> FindGpu(const Topology& topology, const std::string& name) {
  std::vector<std::string> names;
  for (size_t i = 0; i < topology.gpus().size(); ++i) {
    if (topology.gpus()[i].name == name) return static_cast<int>(i);
    names.push_back(topology.gpus()[i].name);
  }
  return absl::NotFoundError(absl::StrCat(topology.name(), " has no GPU '", name, "'; it has ",
                                          absl::StrJoin(names, ", ")));
}

int ShowRoute(const TopologyCommandFlags& flags) {
  absl::StatusOr<std::vector<LabelledTopology>> topologies =
      LoadTopologies({flags.file}, flags.topology);
  if (!topologies.ok()) return Fail(topologies.status());
  for (const LabelledTopology& labelled : *topologies) {
    const Topology& topology = labelled.topology;
    absl::StatusOr<int> from = FindGpu(topology, flags.from);
    if (!from.ok()) return Fail(from.status());
    absl::StatusOr<int> to = FindGpu(topology, flags.to);
    if (!to.ok()) return Fail(to.status());
    if (*from == *to) {
      return Fail(absl::InvalidArgumentError("a GPU needs no route to itself: name two"));
    }
    const Route& route = topology.route(*from, *to);
    std::cout << labelled.label << ": " << flags.from << " -> " << flags.to << ": "
              << PathKindName(route.kind) << ", " << RouteRate(topology, route)
              << absl::StrFormat(", %.2f us of hardware latency\n", route.latency_s * 1e6);
    Table table;
    table.Row("segment", {"kind", "line GB/s", "payload GB/s", ""});
    for (int index : route.segments) {
      const Segment& segment = topology.segments()[index];
      table.Row(segment.name, {std::string(SegmentKindName(segment.kind)),
                               absl::StrFormat("%.2f", segment.line_bytes_per_s / 1e9),
                               absl::StrFormat("%.2f", segment.payload_bytes_per_s / 1e9),
                               index == route.bottleneck ? "<- bottleneck" : ""});
    }
    table.Print(std::cout);
    if (route.kind == PATH_KIND_NETWORK_RDMA || route.kind == PATH_KIND_NETWORK_TCP) {
      std::cout << "GPUDirect RDMA: "
                << (route.gpudirect ? std::string("on") : "off: " + route.gpudirect_reason)
                << "\nPath MTU: " << topology.network_mtu_bytes() << " bytes\n";
    }
    absl::StatusOr<SendCost> cost = SendCost::For(topology, route);
    if (!cost.ok()) return Fail(cost.status());
    if (cost->max_bytes_per_s() < route.payload_bytes_per_s) {
      std::cout << absl::StrFormat("A message stream reaches %.2f GB/s: limited by %s\n",
                                   cost->max_bytes_per_s() / 1e9, cost->limit());
    }
    for (double bytes : {32768.0, 1048576.0, 67108864.0}) {
      std::cout << absl::StrFormat("  a message of %s: %s\n", FormatBytes(bytes),
                                   FormatSeconds(cost->LoneSeconds(bytes)));
    }
  }
  return 0;
}

}  // namespace

void AddTopologyCommand(CLI::App& app, int& exit_status) {
  CLI::App* command = app.add_subcommand("topology", "Check and look at descriptions of hardware");
  command->require_subcommand(1);
  auto flags = std::make_shared<TopologyCommandFlags>();

  CLI::App* validate = command->add_subcommand("validate", "Check cluster files");
  validate->footer("Example:\n  fabricast topology validate topology/clusters/*.txtpb");
  validate->add_option("topologies", flags->files, "Cluster files or bundled clusters")->required();
  flags->topology.AddTo(*validate);
  validate->callback([=, &exit_status] { exit_status = Validate(*flags); });

  CLI::App* show = command->add_subcommand("show", "GPUs in rank order and the hops between them");
  show->footer("Example:\n  fabricast topology show trinity_200g");
  show->add_option("topology", flags->file, "A cluster file or a bundled cluster's name")
      ->required();
  flags->topology.AddTo(*show);
  show->callback([=, &exit_status] { exit_status = Show(*flags); });

  CLI::App* route = command->add_subcommand("route", "The way from one GPU to another");
  route->footer("Example:\n  fabricast topology route trinity_200g node_a.gpu1 node_b.gpu0");
  route->add_option("topology", flags->file, "A cluster file or a bundled cluster's name")
      ->required();
  route->add_option("from", flags->from, "host.gpu")->required();
  route->add_option("to", flags->to, "host.gpu")->required();
  flags->topology.AddTo(*route);
  route->callback([=, &exit_status] { exit_status = ShowRoute(*flags); });
}

void AddListCommands(CLI::App& app, int& exit_status) {
  CLI::App* models =
      app.add_subcommand("models", "List the bundled models and the source of their facts");
  models->footer("Example:\n  fabricast models");
  models->callback([&exit_status] {
    for (const CatalogueEntry& entry : ModelCatalogue()) {
      std::cout << entry.name << "\n    " << entry.description << "\n    " << entry.source << "\n";
    }
    exit_status = 0;
  });
  CLI::App* workloads = app.add_subcommand("workloads", "List the bundled workloads");
  workloads->footer("Example:\n  fabricast workloads");
  workloads->callback([&exit_status] {
    for (const WorkloadName& entry : WorkloadCatalogue()) {
      std::cout << entry.name << "\n    " << entry.description << "\n    " << entry.spec << "\n";
    }
    exit_status = 0;
  });
}

}  // namespace fabricast
