// Flags that several commands share, and what they name: topologies with overrides, model,
// workload, plan.
#ifndef FABRICAST_TOOLS_FABRICAST_INPUTS_H_
#define FABRICAST_TOOLS_FABRICAST_INPUTS_H_

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "runtime/metrics/result.pb.h"
#include "runtime/plan/plan.h"
#include "runtime/workload/workload.h"
#include "simulator/simulate.h"
#include "topology/topology.h"

namespace fabricast {

// --set, once or often. A value may be a list, "path=200,400": the topology is then loaded once for
// each.
struct TopologyFlags {
  std::vector<std::string> set;

  void AddTo(CLI::App& command);
};

struct LabelledTopology {
  std::string label;  // the topology's name, with the overrides that tell it from its siblings
  Topology topology;
  std::vector<std::string> overrides;
};

// Every file with every combination of override values, in order.
absl::StatusOr<std::vector<LabelledTopology>> LoadTopologies(const std::vector<std::string>& files,
                                                             const TopologyFlags& flags);

struct ModelFlags {
  std::string model;
  std::string quantization;

  void AddTo(CLI::App& command, bool required = true);
  absl::StatusOr<Model> Load() const { return LoadModel(model, quantization); }
};

struct PlanFlags {
  PlanOptions options;
  std::string split = "even";
  std::string tensor_parallel = "1";
  std::string in_flight;             // a number, "auto" or empty: one a stage
  std::string chunk_tokens = "512";  // a number or "auto"
  std::string stage_times;           // a saved result; empty: none

  void AddTo(CLI::App& command);
  // What is left to `auto` is chosen for `workload`, if there is one.
  absl::StatusOr<PlanOptions> Options(const Workload* workload = nullptr) const;
};

// Mean lengths of a workload's requests, and how many of them a closed loop keeps at a time; of
// open loops, whose requests at a time follow from the pipeline, as many as ExpectedLoad() says.
ExpectedLoad LoadOf(const Workload& workload);

struct WorkloadFlags {
  std::string workload = "chat-closed-8";
  std::string window;
  WorkloadOptions options;

  CLI::Option* AddTo(CLI::App& command);  // returns --workload
  absl::StatusOr<Workload> Load() const;
};

enum class Format { kText, kJson };
void AddFormatFlag(CLI::App& command, Format& format);

// Prints a message as JSON, as ToJson writes it.
void PrintJson(const google::protobuf::Message& message);

// Writes "fabricast: message" to standard error; returns the exit status 1.
int Fail(const absl::Status& status);

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_INPUTS_H_
