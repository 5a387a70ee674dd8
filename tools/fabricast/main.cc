// fabricast: forecasts what a pipeline of GPUs would do on another fabric.

#include "CLI/CLI.hpp"
#include "runtime/version.h"
#include "tools/fabricast/commands.h"

int main(int argc, char** argv) {
  CLI::App app(
      "Forecasts the latency and throughput of a large language model, run as a pipeline over GPUs "
      "joined by "
      "Ethernet, from a description of the hardware.\n"
      "Exit status: 0 done, 1 the input is wrong or does not fit, 2 wrong usage, 3 a --fail-if "
      "condition holds, 130 interrupted.",
      "fabricast");
  app.require_subcommand(1);
  app.set_version_flag("--version", fabricast::kVersion);
  app.get_formatter()->column_width(34);
  int exit_status = 0;
  fabricast::AddCompareCommand(app, exit_status);
  fabricast::AddSimulateCommand(app, exit_status);
  fabricast::AddRunCommand(app, exit_status);
  fabricast::AddStageCommand(app, exit_status);
  fabricast::AddPlanCommand(app, exit_status);
  fabricast::AddCollectiveCommand(app, exit_status);
  fabricast::AddTopologyCommand(app, exit_status);
  fabricast::AddListCommands(app, exit_status);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // CLI11 has a code of its own for each error; scripts want one.
    return app.exit(error) == 0 ? 0 : 2;
  }
  return exit_status;
}
