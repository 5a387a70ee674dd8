// Scenarios for the simulator's tests.
#ifndef FABRICAST_SIMULATOR_TEST_SCENARIOS_H_
#define FABRICAST_SIMULATOR_TEST_SCENARIOS_H_

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "simulator/simulate.h"

namespace fabricast {

// Ends the program, with the status, if a part cannot be made.
inline Scenario MakeScenario(const std::string& topology, const std::string& workload,
                             const PlanOptions& plan_options = {},
                             const std::vector<Override>& overrides = {},
                             const std::string& model = "llama-3.1-405b-instruct-awq-int4") {
  const Topology loaded = Topology::Load(topology, overrides).value();
  const Model made_model = LoadModel(model).value();
  return {.label = topology,
          .topology = loaded,
          .model = made_model,
          .plan = MakePlan(loaded, made_model, plan_options).value(),
          .workload = MakeWorkload(workload).value(),
          .trace_file = ""};
}

inline Result MustSimulate(const Scenario& scenario) {
  absl::StatusOr<Result> result = Simulate(scenario);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.value_or(Result());
}

}  // namespace fabricast

#endif  // FABRICAST_SIMULATOR_TEST_SCENARIOS_H_
