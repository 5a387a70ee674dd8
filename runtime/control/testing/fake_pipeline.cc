// A head, or a stage, as a process, for tests that break them. Stages compute what FakeExecutor
// does.
//
//   fake_pipeline head  --stages 2 --ip 10.0.0.1 --port 29400 --token-file FILE [--children]
//   fake_pipeline stage --stages 2 --stage 1 --ip 10.0.0.2 --head 10.0.0.1:29400 --token-file FILE
//
// The head keeps some requests running until it is killed or the stages are gone, and prints a line
// for each that has ended: "ok" or "error: MESSAGE".

#include <chrono>
#include <deque>
#include <iostream>
#include <thread>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "runtime/check.h"
#include "runtime/control/stage_children.h"
#include "runtime/control/stage_process.h"
#include "runtime/control/testing/test_pipeline.h"
#include "runtime/engine/fake_executor.h"

namespace fabricast {
namespace {

struct Flags {
  int stages = 1;
  int stage = 0;
  std::string ip = "127.0.0.1";
  int port = 0;
  std::string head;
  std::string token_file;
  double silent_after_s = 4;
  int step_ms = 0;
  int requests = 4;
  int64_t tokens = 10;
  bool children = false;
};

SharedSecret Secret(const Flags& flags) {
  absl::StatusOr<SharedSecret> secret = SharedSecret::FromFile(flags.token_file);
  FABRICAST_CHECK(secret.ok()) << secret.status();
  return *std::move(secret);
}

std::vector<std::string> StageArguments(const Flags& flags, const std::string& head, int stage) {
  return {"stage",
          "--stages",
          absl::StrCat(flags.stages),
          "--stage",
          absl::StrCat(stage),
          "--head",
          head,
          "--silent-after",
          absl::StrCat(flags.silent_after_s),
          "--step-ms",
          absl::StrCat(flags.step_ms),
          "--token-file",
          StageChildrenOptions::kTokenFile};
}

int RunHead(const Flags& flags) {
  RemoteStagesOptions options = TestHeadOptions(flags.stages, Secret(flags));
  options.ip = flags.ip;
  options.port = flags.port;
  options.silent_after = absl::Seconds(flags.silent_after_s);
  options.log = [](absl::string_view line) { std::cerr << absl::StrCat(line, "\n"); };
  TestPipeline pipeline(options);
  std::unique_ptr<StageChildren> children;
  if (flags.children) {
    StageChildrenOptions all;
    for (int s = 0; s < flags.stages; ++s) all.stages.push_back(s);
    all.secret = options.secret;
    all.arguments = [&](int stage) { return StageArguments(flags, pipeline.address(), stage); };
    all.on_end = [&](int stage, absl::string_view how, bool fatal) {
      pipeline.remote().ProcessEnded(stage, how, fatal);
    };
    absl::StatusOr<std::unique_ptr<StageChildren>> started = StageChildren::Start(std::move(all));
    FABRICAST_CHECK(started.ok()) << started.status();
    children = *std::move(started);
  }
  std::cout << absl::StrCat("listening ", pipeline.address()) << std::endl;
  std::deque<std::pair<RequestId, std::vector<int32_t>>> running;
  for (int32_t next = 0; pipeline.engine().status().ok(); ++next) {
    const std::vector<int32_t> prompt = {next % 100, next % 7};
    running.emplace_back(pipeline.Submit(prompt, flags.tokens), prompt);
    if (static_cast<int>(running.size()) < flags.requests) continue;
    const auto [id, first] = running.front();
    running.pop_front();
    const absl::StatusOr<std::vector<int32_t>> tokens = pipeline.Await(id);
    if (tokens.ok()) {
      FABRICAST_CHECK(*tokens == FakeContinuation(first, flags.tokens)) << "wrong tokens";
      std::cout << "ok" << std::endl;
    } else {
      std::cout << absl::StrCat("error: ", tokens.status().message()) << std::endl;
    }
  }
  return 1;
}

int RunStage(const Flags& flags) {
  StageProcessOptions options;
  options.stage = flags.stage;
  options.head = flags.head;
  options.ip = flags.ip;
  options.secret = Secret(flags);
  options.fingerprints = TestFingerprints();
  options.silent_after = absl::Seconds(flags.silent_after_s);
  options.rejoin_timeout = options.silent_after;
  options.transport.dead_after = options.silent_after;
  options.log = [](absl::string_view line) { std::cerr << absl::StrCat(line, "\n"); };
  options.load = [&](const control::Load&) -> absl::StatusOr<std::unique_ptr<StageExecutor>> {
    return std::make_unique<FakeExecutor>(flags.stage, flags.stages, [&](const Step&) {
      std::this_thread::sleep_for(std::chrono::milliseconds(flags.step_ms));
      return absl::OkStatus();
    });
  };
  const absl::Status status = RunStageProcess(options);
  if (status.ok()) return 0;
  std::cerr << status.message() << std::endl;
  return 1;
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("A head or a stage, for tests.");
  app.require_subcommand(1);
  CLI::App* head = app.add_subcommand("head", "");
  CLI::App* stage = app.add_subcommand("stage", "");
  for (CLI::App* role : {head, stage}) {
    role->add_option("--stages", flags.stages);
    role->add_option("--ip", flags.ip);
    role->add_option("--token-file", flags.token_file)->required();
    role->add_option("--silent-after", flags.silent_after_s);
    role->add_option("--step-ms", flags.step_ms);
  }
  head->add_option("--port", flags.port);
  head->add_option("--requests", flags.requests);
  head->add_option("--tokens", flags.tokens);
  head->add_flag("--children", flags.children);
  stage->add_option("--stage", flags.stage)->required();
  stage->add_option("--head", flags.head)->required();
  CLI11_PARSE(app, argc, argv);
  return head->parsed() ? RunHead(flags) : RunStage(flags);
}

}  // namespace
}  // namespace fabricast

int main(int argc, char** argv) { return fabricast::Main(argc, argv); }
