#include "runtime/control/step_message.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/control/protocol.h"
#include "runtime/executor/sampling.h"

namespace fabricast {
namespace {

absl::Status Bad(absl::string_view what, int64_t micro_batch, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(what, " of micro-batch ", micro_batch, ": ", why));
}

// Far beyond any context, and far from where sums of positions overflow.
constexpr int64_t kMaxPosition = int64_t{1} << 40;

SamplingParams FromMessage(const control::Sampling& message) {
  return {.temperature = message.temperature(),
          .top_p = message.top_p(),
          .top_k = message.top_k(),
          .repetition_penalty = message.repetition_penalty(),
          .seed = 0,
          .logprobs = message.logprobs()};
}

bool SameButForSeed(const SamplingParams& a, const SamplingParams& b) {
  return a.temperature == b.temperature && a.top_p == b.top_p && a.top_k == b.top_k &&
         a.repetition_penalty == b.repetition_penalty && a.logprobs == b.logprobs;
}

absl::StatusOr<std::vector<SampledToken>> FromMessage(const control::SampledTokens& message) {
  const bool tops = message.top_count_size() > 0;
  if (message.logprob_size() != message.token_size() ||
      (tops && message.top_count_size() != message.token_size()) ||
      message.top_token_size() != message.top_logprob_size()) {
    return absl::InvalidArgumentError("sampled tokens: lists of different lengths");
  }
  std::vector<SampledToken> sampled(message.token_size());
  int next = 0;
  for (int i = 0; i < message.token_size(); ++i) {
    sampled[i].token = message.token(i);
    sampled[i].logprob = message.logprob(i);
    const int count = tops ? message.top_count(i) : 0;
    if (count < 0 || count > message.top_token_size() - next) {
      return absl::InvalidArgumentError("sampled tokens: more alternatives than are there");
    }
    sampled[i].top.reserve(count);
    for (int t = 0; t < count; ++t, ++next) {
      sampled[i].top.push_back({message.top_token(next), message.top_logprob(next)});
    }
  }
  if (next != message.top_token_size()) {
    return absl::InvalidArgumentError("sampled tokens: alternatives of no token");
  }
  return sampled;
}

control::Report::Kind ToMessage(StageReport::Kind kind) {
  switch (kind) {
    case StageReport::Kind::kDelivered:
      return control::Report::DELIVERED;
    case StageReport::Kind::kStarted:
      return control::Report::STARTED;
    case StageReport::Kind::kComputed:
      return control::Report::COMPUTED;
    case StageReport::Kind::kSendStarted:
      return control::Report::SEND_STARTED;
  }
  return control::Report::DELIVERED;
}

bool FromMessage(control::Report::Kind message, StageReport::Kind& kind) {
  switch (message) {
    case control::Report::DELIVERED:
      kind = StageReport::Kind::kDelivered;
      return true;
    case control::Report::STARTED:
      kind = StageReport::Kind::kStarted;
      return true;
    case control::Report::COMPUTED:
      kind = StageReport::Kind::kComputed;
      return true;
    case control::Report::SEND_STARTED:
      kind = StageReport::Kind::kSendStarted;
      return true;
    default:
      return false;
  }
}

// In a message: ids take at most 10 bytes (a negative int32), log-probabilities 4, counts 5.
int64_t MostBytes(const SampledToken& token) {
  return 19 + 14 * static_cast<int64_t>(token.top.size());
}

// Leaves room in a message for reports without tokens, of some 40 bytes each.
constexpr int64_t kMaxTokenBytes = kMaxBytesFromStage - 4096;
static_assert(19 + 14 * kMaxLogprobs <= kMaxTokenBytes);

}  // namespace

control::Step ToMessage(const Step& step, int64_t generation) {
  control::Step message;
  message.set_generation(generation);
  message.set_micro_batch(step.micro_batch.id);
  const int entries = static_cast<int>(step.micro_batch.entries.size());
  message.mutable_request()->Reserve(entries);
  message.mutable_first_token()->Reserve(entries);
  message.mutable_token_count()->Reserve(entries);
  message.mutable_decode()->Reserve(entries);
  message.mutable_samples()->Reserve(entries);
  for (const BatchEntry& entry : step.micro_batch.entries) {
    message.add_request(entry.request);
    message.add_first_token(entry.first_token);
    message.add_token_count(entry.tokens);
    message.add_decode(entry.decode);
    message.add_samples(entry.samples);
  }
  message.mutable_tokens()->Add(step.tokens.begin(), step.tokens.end());
  const bool one_for_all = std::all_of(
      step.sampling.begin(), step.sampling.end(),
      [&](const SamplingParams& params) { return SameButForSeed(params, step.sampling.front()); });
  message.mutable_seed()->Reserve(entries);
  for (const SamplingParams& params : step.sampling) {
    message.add_seed(params.seed);
    if (one_for_all && message.sampling_size() > 0) continue;
    control::Sampling& sampling = *message.add_sampling();
    sampling.set_temperature(params.temperature);
    sampling.set_top_p(params.top_p);
    sampling.set_top_k(params.top_k);
    sampling.set_repetition_penalty(params.repetition_penalty);
    sampling.set_logprobs(params.logprobs);
  }
  message.mutable_released()->Add(step.released.begin(), step.released.end());
  return message;
}

absl::StatusOr<std::shared_ptr<const Step>> FromMessage(const control::Step& message) {
  const auto bad = [&message](absl::string_view why) {
    return Bad("step", message.micro_batch(), why);
  };
  const int entries = message.request_size();
  if (entries == 0) return bad("it is empty");
  if (message.first_token_size() != entries || message.token_count_size() != entries ||
      message.decode_size() != entries || message.samples_size() != entries ||
      message.seed_size() != entries ||
      (message.sampling_size() != entries && message.sampling_size() != 1)) {
    return bad("lists of different lengths");
  }
  if (message.micro_batch() < 0) return bad("its number is negative");
  auto step = std::make_shared<Step>();
  step->micro_batch.id = message.micro_batch();
  step->micro_batch.entries.reserve(entries);
  step->sampling.reserve(entries);
  int64_t tokens = 0;
  for (int i = 0; i < entries; ++i) {
    const BatchEntry entry{.request = message.request(i),
                           .first_token = message.first_token(i),
                           .tokens = message.token_count(i),
                           .decode = message.decode(i),
                           .samples = message.samples(i)};
    if (entry.first_token < 0 || entry.first_token > kMaxPosition) return bad("a position");
    if (entry.tokens < 1 || entry.tokens > message.tokens_size()) return bad("a token count");
    if (entry.decode && entry.tokens != 1) return bad("a decode of several tokens");
    tokens += entry.tokens;
    step->micro_batch.entries.push_back(entry);
    if (i < message.sampling_size()) {
      step->sampling.push_back(FromMessage(message.sampling(i)));
      if (absl::Status status = Validate(step->sampling.back()); !status.ok()) {
        return bad(status.message());
      }
    } else {
      step->sampling.push_back(step->sampling.front());
    }
    step->sampling.back().seed = message.seed(i);
  }
  if (tokens != message.tokens_size()) return bad("tokens that do not add up");
  step->tokens.assign(message.tokens().begin(), message.tokens().end());
  step->released.assign(message.released().begin(), message.released().end());
  return step;
}

std::vector<control::Reports> ToMessages(const std::vector<StageReport>& reports,
                                         int64_t generation) {
  std::vector<control::Reports> messages(1);
  for (const StageReport& report : reports) {
    control::Report* added = messages.back().add_reports();
    added->set_micro_batch(report.id);
    int64_t bytes = 0;
    const bool tops = std::any_of(report.sampled.begin(), report.sampled.end(),
                                  [](const SampledToken& token) { return !token.top.empty(); });
    for (const SampledToken& token : report.sampled) {
      const int64_t more = MostBytes(token);
      if (bytes > 0 && bytes + more > kMaxTokenBytes) {
        added->set_continued(true);
        added = messages.emplace_back().add_reports();
        added->set_micro_batch(report.id);
        bytes = 0;
      }
      bytes += more;
      control::SampledTokens& sampled = *added->mutable_sampled();
      sampled.add_token(token.token);
      sampled.add_logprob(token.logprob);
      if (tops) sampled.add_top_count(static_cast<int32_t>(token.top.size()));
      for (const TokenLogprob& other : token.top) {
        sampled.add_top_token(other.token);
        sampled.add_top_logprob(other.logprob);
      }
    }
    added->set_kind(ToMessage(report.kind));
    added->set_at_ns(
        std::chrono::duration_cast<std::chrono::nanoseconds>(report.at.time_since_epoch()).count());
    added->set_bytes(report.bytes);
  }
  for (control::Reports& message : messages) message.set_generation(generation);
  return messages;
}

absl::StatusOr<std::vector<StageReport>> ReportReader::Take(const control::Reports& message,
                                                            int stage, int64_t offset_ns) {
  std::vector<StageReport> reports;
  reports.reserve(message.reports_size());
  for (const control::Report& from : message.reports()) {
    absl::StatusOr<std::vector<SampledToken>> sampled = FromMessage(from.sampled());
    if (!sampled.ok()) return Bad("report", from.micro_batch(), sampled.status().message());
    size_ += sampled->size() + from.sampled().top_token_size();
    if (size_ > kMaxSampled) return Bad("report", from.micro_batch(), "too many tokens");
    for (SampledToken& token : *sampled) sampled_.push_back(std::move(token));
    if (from.continued()) continue;
    StageReport report;
    report.stage = stage;
    report.id = from.micro_batch();
    report.bytes = from.bytes();
    report.sampled = std::exchange(sampled_, {});
    size_ = 0;
    if (!FromMessage(from.kind(), report.kind)) return Bad("report", report.id, "no known kind");
    if (report.id < 0 || report.bytes < 0) return Bad("report", report.id, "a negative number");
    // Wraps around, as a wrong clock may; the engine bears any time.
    const uint64_t at = static_cast<uint64_t>(from.at_ns()) - static_cast<uint64_t>(offset_ns);
    report.at =
        std::chrono::steady_clock::time_point(std::chrono::nanoseconds(static_cast<int64_t>(at)));
    reports.push_back(std::move(report));
  }
  return reports;
}

}  // namespace fabricast
