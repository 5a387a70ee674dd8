#include "runtime/control/testing/test_pipeline.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/check.h"

namespace fabricast {

Fingerprints TestFingerprints() {
  return {{"model", "aaaaaaaaaaaa"}, {"topology", "bbbbbbbbbbbb"}};
}

RemoteStagesOptions TestHeadOptions(int stages, const SharedSecret& secret) {
  RemoteStagesOptions options;
  options.secret = secret;
  options.fingerprints = TestFingerprints();
  for (int s = 0; s < stages; ++s) {
    control::Load load;
    load.set_stages(stages);
    load.set_first_layer(10 * s);
    options.loads.push_back(load);
    options.names.push_back(absl::StrCat("host_", std::string(1, static_cast<char>('a' + s))));
  }
  return options;
}

TestPipeline::TestPipeline(const RemoteStagesOptions& options) {
  absl::StatusOr<std::unique_ptr<RemoteStages>> remote = RemoteStages::Listen(options);
  FABRICAST_CHECK(remote.ok()) << remote.status();
  remote_ = remote->get();
  EngineOptions engine;
  engine.scheduler.max_in_flight = remote_->count();
  engine.scheduler.max_batch_tokens = 64;
  engine.scheduler.max_chunk_tokens = 16;
  engine.scheduler.max_running = kMaxRunning;
  engine.scheduler.kv_blocks = 4000;
  engine_ = std::make_unique<Engine>(engine, *std::move(remote));
}

TestPipeline::~TestPipeline() {
  engine_->CancelAll();
  engine_->WaitUntilIdle().IgnoreError();
}

RequestId TestPipeline::Submit(std::vector<int32_t> prompt, int64_t count, int logprobs) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_output_tokens = count;
  request.sampling.logprobs = logprobs;
  return engine_->Submit(std::move(request), [this](const GenerationUpdate& update) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Outcome& outcome = outcomes_[update.request];
    FABRICAST_CHECK(!outcome.ended) << update.request;
    if (update.token.has_value()) outcome.tokens.push_back(update.token->token);
    if (update.last()) {
      outcome.ended = true;
      outcome.error = update.error;
    }
    changed_.notify_all();
  });
}

absl::StatusOr<std::vector<int32_t>> TestPipeline::Await(RequestId id) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return outcomes_[id].ended; });
  const Outcome outcome = std::move(outcomes_[id]);
  outcomes_.erase(id);
  if (!outcome.error.ok()) return outcome.error;
  return outcome.tokens;
}

absl::StatusOr<std::vector<int32_t>> TestPipeline::Generate(std::vector<int32_t> prompt,
                                                            int64_t count) {
  return Await(Submit(std::move(prompt), count));
}

std::vector<int32_t> TestPipeline::GenerateAgain(const std::vector<int32_t>& prompt,
                                                 int64_t count) {
  for (;;) {
    absl::StatusOr<std::vector<int32_t>> tokens = Generate(prompt, count);
    if (tokens.ok()) return *std::move(tokens);
    FABRICAST_CHECK(engine_->status().ok()) << engine_->status();
  }
}

void TestPipeline::AwaitTokens(RequestId id, size_t count) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return outcomes_[id].tokens.size() >= count || outcomes_[id].ended; });
}

}  // namespace fabricast
