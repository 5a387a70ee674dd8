#include "runtime/executor/cuda/stage_requests.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/attention/kv_cache.h"
#include "runtime/check.h"

namespace fabricast {

StageRequests::StageRequests(const StageRequestsOptions& options) : options_(options) { Clear(); }

void StageRequests::Clear() {
  contexts_.clear();
  given_back_.clear();
  next_block_ = 0;
  histories_.clear();
  free_histories_.clear();
  for (int64_t i = options_.max_running; i > 0; --i) {
    free_histories_.push_back(static_cast<int32_t>(i - 1));
  }
  fresh_histories_.clear();
}

absl::Status StageRequests::Take(const Step& step) {
  fresh_histories_.clear();
  for (const RequestId request : step.released) Release(request);
  if (absl::Status status = CheckTokens(step); !status.ok()) return status;
  absl::Span<const int32_t> tokens = step.tokens;
  for (size_t i = 0; i < step.micro_batch.entries.size(); ++i) {
    const BatchEntry& entry = step.micro_batch.entries[i];
    if (absl::Status status = ExtendBlocks(entry); !status.ok()) return status;
    if (options_.samples && step.sampling[i].repetition_penalty != 1) {
      absl::Status status = ExtendHistory(entry, tokens.subspan(0, entry.tokens));
      if (!status.ok()) return status;
    }
    tokens.remove_prefix(entry.tokens);
  }
  return absl::OkStatus();
}

absl::Status StageRequests::CheckTokens(const Step& step) const {
  size_t at = 0;
  for (const BatchEntry& entry : step.micro_batch.entries) {
    for (int64_t i = 0; i < entry.tokens; ++i, ++at) {
      if (step.tokens[at] >= 0 && step.tokens[at] < options_.vocabulary) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("request ", entry.request, ": token ", step.tokens[at], " at position ",
                       entry.first_token + i, " is not in the vocabulary of ", options_.vocabulary,
                       ": use the model's own tokenizer"));
    }
  }
  return absl::OkStatus();
}

void StageRequests::Release(RequestId request) {
  if (const auto it = contexts_.find(request); it != contexts_.end()) {
    const std::vector<int32_t>& blocks = it->second.blocks;
    given_back_.insert(given_back_.end(), blocks.rbegin(), blocks.rend());
    contexts_.erase(it);
  }
  if (const auto it = histories_.find(request); it != histories_.end()) {
    free_histories_.push_back(it->second.index);
    histories_.erase(it);
  }
}

absl::Status StageRequests::ExtendBlocks(const BatchEntry& entry) {
  Context& context = contexts_[entry.request];
  FABRICAST_CHECK(entry.tokens > 0) << "request=" << entry.request << " tokens=" << entry.tokens;
  FABRICAST_CHECK(entry.first_token == context.tokens)
      << "request " << entry.request << " continues at token " << entry.first_token
      << ", but its context is " << context.tokens << " tokens long";
  const int64_t end = entry.first_token + entry.tokens;
  const int64_t needed = (end + kKvBlockTokens - 1) / kKvBlockTokens;
  while (static_cast<int64_t>(context.blocks.size()) < needed) {
    if (free_blocks() == 0) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "request ", entry.request, " needs ", needed, " KV blocks of ", kKvBlockTokens,
          " tokens, has ", context.blocks.size(), ", and all ", options_.kv_blocks,
          " of this stage are taken: give the scheduler no more blocks"));
    }
    if (given_back_.empty()) {
      context.blocks.push_back(static_cast<int32_t>(next_block_++));
    } else {
      context.blocks.push_back(given_back_.back());
      given_back_.pop_back();
    }
  }
  context.tokens = end;
  return absl::OkStatus();
}

absl::Status StageRequests::ExtendHistory(const BatchEntry& entry,
                                          absl::Span<const int32_t> tokens) {
  History& history = histories_[entry.request];
  FABRICAST_CHECK(static_cast<int64_t>(history.tokens.size()) == entry.first_token)
      << "request " << entry.request << " has a repetition penalty at token " << entry.first_token
      << ", but not at all tokens before";
  if (history.index < 0) {
    if (free_histories_.empty()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "request ", entry.request, ": more than ", options_.max_running,
          " requests with a repetition penalty at a time: give the scheduler no more max_running"));
    }
    history.index = free_histories_.back();
    free_histories_.pop_back();
    fresh_histories_.push_back(history.index);
  }
  history.tokens.insert(history.tokens.end(), tokens.begin(), tokens.end());
  return absl::OkStatus();
}

absl::Span<const int32_t> StageRequests::blocks(RequestId request) const {
  const auto it = contexts_.find(request);
  FABRICAST_CHECK(it != contexts_.end()) << "request=" << request;
  return it->second.blocks;
}

int32_t StageRequests::history_index(RequestId request) const {
  const auto it = histories_.find(request);
  return it == histories_.end() ? -1 : it->second.index;
}

absl::Span<const int32_t> StageRequests::history(RequestId request) const {
  const auto it = histories_.find(request);
  if (it == histories_.end()) return {};
  return it->second.tokens;
}

}  // namespace fabricast
