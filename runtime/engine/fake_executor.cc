#include "runtime/engine/fake_executor.h"

#include <cstring>
#include <utility>

#include "runtime/check.h"

namespace fabricast {
namespace {

// Of token `id` at the output of `stage`.
int64_t Activation(int32_t id, int stage) { return id * int64_t{1000} + stage; }

}  // namespace

int32_t FakeNextToken(const std::vector<int32_t>& tokens) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const int32_t token : tokens) hash = (hash ^ static_cast<uint32_t>(token)) * 1099511628211u;
  return static_cast<int32_t>((hash >> 32) % 1000);
}

std::vector<int32_t> FakeContinuation(std::vector<int32_t> prompt, int64_t count) {
  std::vector<int32_t> output;
  for (int64_t i = 0; i < count; ++i) {
    output.push_back(FakeNextToken(prompt));
    prompt.push_back(output.back());
  }
  return output;
}

FakeExecutor::FakeExecutor(int stage, int stages, Hook hook)
    : stage_(stage), stages_(stages), hook_(std::move(hook)) {}

absl::Status FakeExecutor::Run(const Step& step, absl::Span<const std::byte> input,
                               absl::Span<std::byte> output, std::vector<SampledToken>& sampled) {
  if (hook_ != nullptr) {
    if (absl::Status status = hook_(step); !status.ok()) return status;
  }
  FABRICAST_CHECK(step.micro_batch.id == next_)
      << "got " << step.micro_batch.id << " for " << next_;
  ++next_;
  for (const RequestId id : step.released) contexts_.erase(id);
  FABRICAST_CHECK(step.tokens.size() == static_cast<size_t>(step.micro_batch.tokens()));
  FABRICAST_CHECK(step.sampling.size() == step.micro_batch.entries.size());
  const size_t bytes = step.tokens.size() * sizeof(int64_t);
  FABRICAST_CHECK(input.size() == (stage_ == 0 ? 0 : bytes)) << input.size();
  FABRICAST_CHECK(output.size() == (stage_ + 1 == stages_ ? 0 : bytes)) << output.size();
  size_t next = 0;
  for (const BatchEntry& entry : step.micro_batch.entries) {
    std::vector<int32_t>& context = contexts_[entry.request];
    FABRICAST_CHECK(entry.first_token == static_cast<int64_t>(context.size()))
        << "request " << entry.request << " goes on at " << entry.first_token << " after "
        << context.size();
    for (int64_t i = 0; i < entry.tokens; ++i, ++next) {
      context.push_back(step.tokens[next]);
      if (stage_ > 0) {
        int64_t got;
        std::memcpy(&got, input.data() + next * sizeof(got), sizeof(got));
        FABRICAST_CHECK(got == Activation(step.tokens[next], stage_ - 1)) << got;
      }
      if (stage_ + 1 < stages_) {
        const int64_t sent = Activation(step.tokens[next], stage_);
        std::memcpy(output.data() + next * sizeof(sent), &sent, sizeof(sent));
      }
    }
    if (stage_ + 1 == stages_ && entry.samples) {
      sampled.push_back({.token = FakeNextToken(context), .logprob = 0, .top = {}});
    }
  }
  return absl::OkStatus();
}

void FakeExecutor::Reset() {
  next_ = 0;
  contexts_.clear();
}

std::vector<std::unique_ptr<StageExecutor>> FakeStages(int stages, FakeExecutor::Hook hook) {
  std::vector<std::unique_ptr<StageExecutor>> executors;
  for (int s = 0; s < stages; ++s) {
    executors.push_back(std::make_unique<FakeExecutor>(s, stages, s == 0 ? hook : nullptr));
  }
  return executors;
}

}  // namespace fabricast
