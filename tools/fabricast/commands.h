// The subcommands of `fabricast`. Each adds itself to the program and stores its exit status when
// it was chosen.
#ifndef FABRICAST_TOOLS_FABRICAST_COMMANDS_H_
#define FABRICAST_TOOLS_FABRICAST_COMMANDS_H_

#include "CLI/CLI.hpp"

namespace fabricast {

void AddCompareCommand(CLI::App& app, int& exit_status);
void AddRunCommand(CLI::App& app, int& exit_status);
void AddStageCommand(CLI::App& app, int& exit_status);
void AddSimulateCommand(CLI::App& app, int& exit_status);
void AddPlanCommand(CLI::App& app, int& exit_status);
void AddCollectiveCommand(CLI::App& app, int& exit_status);
void AddTopologyCommand(CLI::App& app, int& exit_status);
void AddListCommands(CLI::App& app, int& exit_status);  // models, workloads

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_COMMANDS_H_
