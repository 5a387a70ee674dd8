#include "runtime/executor/cpu/cpu_executor.h"

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/check.h"
#include "runtime/executor/cpu/decoder.h"
#include "runtime/executor/cpu/elementwise.h"
#include "runtime/executor/cpu/float_matrix.h"
#include "runtime/executor/cpu/kv_cache.h"
#include "runtime/executor/cpu/thread_pool.h"

namespace fabricast {
namespace {

class CpuExecutor : public StageExecutor {
 public:
  CpuExecutor(const DecoderConfig& config, const CpuExecutorOptions& options,
              std::unique_ptr<ThreadPool> pool, std::unique_ptr<Decoder> decoder)
      : config_(config),
        pool_(std::move(pool)),
        decoder_(std::move(decoder)),
        cache_(decoder_->kv_shape(), options.kv_blocks),
        hidden_(config.hidden),
        logits_(config.vocabulary) {}

  int64_t activation_bytes_per_token() const override {
    return config_.hidden * static_cast<int64_t>(sizeof(float));
  }

  absl::Status Run(const Step& step, absl::Span<const std::byte> input,
                   absl::Span<std::byte> output, std::vector<SampledToken>& sampled) override;

  void Reset() override {
    cache_.Clear();
    histories_.clear();
  }

 private:
  void CheckSizes(const Step& step, absl::Span<const std::byte> input,
                  absl::Span<std::byte> output) const;
  void Release(const std::vector<RequestId>& requests);
  absl::Status CheckTokens(const Step& step) const;
  absl::Status Extend(const Step& step);
  // Leaves in hidden_ the rows of `wanted`. `check_each_layer`: slower; the error names the layer.
  absl::Status ComputeLayers(const Step& step, absl::Span<const std::byte> input,
                             bool check_each_layer);
  // Of `rows`, which hidden_ holds one after another. `after` says what computed it.
  absl::Status CheckFinite(absl::Span<const RequestRows> rows, const std::string& after);
  absl::Status SampleAll(const Step& step, std::vector<SampledToken>& sampled);

  DecoderConfig config_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Decoder> decoder_;
  KvCache cache_;
  // Of requests with a repetition penalty, on the last stage.
  absl::flat_hash_map<RequestId, std::vector<int32_t>> histories_;

  std::vector<RequestRows> batch_;   // one an entry
  std::vector<RequestRows> wanted_;  // rows that the last layer's output is needed of
  FloatMatrix hidden_;
  FloatMatrix logits_;
};

absl::Status CpuExecutor::Run(const Step& step, absl::Span<const std::byte> input,
                              absl::Span<std::byte> output, std::vector<SampledToken>& sampled) {
  sampled.clear();
  CheckSizes(step, input, output);
  Release(step.released);
  if (absl::Status status = CheckTokens(step); !status.ok()) return status;
  if (absl::Status status = Extend(step); !status.ok()) return status;

  absl::Status status = ComputeLayers(step, input, /*check_each_layer=*/false);
  if (!status.ok()) {
    // Computing it again writes the same keys and values once more.
    absl::Status located = ComputeLayers(step, input, /*check_each_layer=*/true);
    return located.ok() ? status : located;
  }
  if (decoder_->has_lm_head()) return SampleAll(step, sampled);
  for (int64_t row = 0; row < hidden_.rows(); ++row) {
    std::memcpy(output.data() + row * activation_bytes_per_token(), hidden_.row(row),
                activation_bytes_per_token());
  }
  return absl::OkStatus();
}

void CpuExecutor::CheckSizes(const Step& step, absl::Span<const std::byte> input,
                             absl::Span<std::byte> output) const {
  const int64_t tokens = step.micro_batch.tokens();
  const int64_t bytes = tokens * activation_bytes_per_token();
  FABRICAST_CHECK(static_cast<int64_t>(step.tokens.size()) == tokens)
      << step.tokens.size() << " token ids for " << tokens << " tokens";
  FABRICAST_CHECK(static_cast<int64_t>(input.size()) == (decoder_->has_embedding() ? 0 : bytes))
      << "input has " << input.size() << " bytes, " << tokens << " tokens are " << bytes;
  FABRICAST_CHECK(static_cast<int64_t>(output.size()) == (decoder_->has_lm_head() ? 0 : bytes))
      << "output has " << output.size() << " bytes, " << tokens << " tokens are " << bytes;
  FABRICAST_CHECK(!decoder_->has_lm_head() ||
                  step.sampling.size() == step.micro_batch.entries.size())
      << step.sampling.size() << " for " << step.micro_batch.entries.size() << " entries";
}

void CpuExecutor::Release(const std::vector<RequestId>& requests) {
  for (const RequestId request : requests) {
    cache_.Release(request);
    histories_.erase(request);
  }
}

absl::Status CpuExecutor::CheckTokens(const Step& step) const {
  size_t at = 0;
  for (const BatchEntry& entry : step.micro_batch.entries) {
    for (int64_t i = 0; i < entry.tokens; ++i, ++at) {
      if (step.tokens[at] >= 0 && step.tokens[at] < config_.vocabulary) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("request ", entry.request, ": token ", step.tokens[at], " at position ",
                       entry.first_token + i, " is not in the vocabulary of ", config_.vocabulary,
                       ": use the model's own tokenizer"));
    }
  }
  return absl::OkStatus();
}

absl::Status CpuExecutor::Extend(const Step& step) {
  batch_.clear();
  wanted_.clear();
  int64_t row = 0;
  for (size_t i = 0; i < step.micro_batch.entries.size(); ++i) {
    const BatchEntry& entry = step.micro_batch.entries[i];
    absl::Status status = cache_.Extend(entry.request, entry.first_token, entry.tokens);
    if (!status.ok()) return status;
    batch_.push_back({.request = entry.request,
                      .first_position = entry.first_token,
                      .first_row = row,
                      .rows = entry.tokens});
    if (!decoder_->has_lm_head()) {
      wanted_.push_back(batch_.back());
    } else if (entry.samples) {
      wanted_.push_back({.request = entry.request,
                         .first_position = entry.first_token + entry.tokens - 1,
                         .first_row = row + entry.tokens - 1,
                         .rows = 1});
    }
    if (decoder_->has_lm_head() && step.sampling[i].repetition_penalty != 1) {
      std::vector<int32_t>& history = histories_[entry.request];
      FABRICAST_CHECK(static_cast<int64_t>(history.size()) == entry.first_token)
          << "request " << entry.request << " has a repetition penalty at token "
          << entry.first_token << ", but not at all tokens before";
      history.insert(history.end(), step.tokens.begin() + row,
                     step.tokens.begin() + row + entry.tokens);
    }
    row += entry.tokens;
  }
  return absl::OkStatus();
}

absl::Status CpuExecutor::ComputeLayers(const Step& step, absl::Span<const std::byte> input,
                                        bool check_each_layer) {
  decoder_->SetBatch(batch_);
  if (decoder_->has_embedding()) {
    decoder_->Embed(step.tokens, hidden_);
  } else {
    hidden_.Resize(static_cast<int64_t>(step.tokens.size()));
    for (int64_t row = 0; row < hidden_.rows(); ++row) {
      std::memcpy(hidden_.row(row), input.data() + row * activation_bytes_per_token(),
                  activation_bytes_per_token());
    }
  }
  if (check_each_layer) {
    absl::Status status = CheckFinite(
        batch_, decoder_->has_embedding() ? "after the embedding" : "as the stage before sent it");
    if (!status.ok()) return status;
  }

  const int64_t layers = decoder_->layers();
  for (int64_t layer = 0; layer < layers; ++layer) {
    const absl::Span<const RequestRows> rows = layer + 1 == layers ? wanted_ : batch_;
    const int64_t bad_row = decoder_->ComputeLayer(layer, rows, cache_, hidden_);
    // A row that is not finite stays so: the hidden state is a sum over layers. Only what no later
    // layer sees must be looked at here.
    if (bad_row < 0 && !check_each_layer && layer + 1 < layers) continue;
    const std::string name = absl::StrCat("layer ", layer + 1, " of this stage's ", layers, " (",
                                          decoder_->LayerName(layer), ")");
    if (bad_row >= 0) {
      for (const RequestRows& request : batch_) {
        if (bad_row >= request.first_row + request.rows) continue;
        return absl::InternalError(absl::StrCat(
            "request ", request.request, ": the keys or values at position ",
            request.first_position + bad_row - request.first_row, " are not finite in ", name));
      }
    }
    absl::Status status = CheckFinite(rows, absl::StrCat("after ", name));
    if (!status.ok()) return status;
  }
  if (layers == 0) {  // none that would leave out the others
    int64_t to = 0;
    for (const RequestRows& request : wanted_) {
      for (int64_t i = 0; i < request.rows; ++i, ++to) {
        std::memmove(hidden_.row(to), hidden_.row(request.first_row + i),
                     activation_bytes_per_token());
      }
    }
    hidden_.Resize(to);
    return CheckFinite(wanted_, "before the first layer");
  }
  return absl::OkStatus();
}

absl::Status CpuExecutor::CheckFinite(absl::Span<const RequestRows> rows,
                                      const std::string& after) {
  int64_t row = 0;
  for (const RequestRows& request : rows) {
    for (int64_t i = 0; i < request.rows; ++i, ++row) {
      if (AllFinite(config_.hidden, hidden_.row(row))) continue;
      return absl::InternalError(
          absl::StrCat("request ", request.request, ": the hidden state at position ",
                       request.first_position + i, " is not finite ", after, ": are the weights?"));
    }
  }
  return absl::OkStatus();
}

absl::Status CpuExecutor::SampleAll(const Step& step, std::vector<SampledToken>& sampled) {
  if (wanted_.empty()) return absl::OkStatus();
  decoder_->ComputeLogits(hidden_, logits_);

  std::vector<size_t> entries;
  for (size_t i = 0; i < step.micro_batch.entries.size(); ++i) {
    if (step.micro_batch.entries[i].samples) entries.push_back(i);
  }
  std::vector<absl::Status> statuses(entries.size());
  sampled.resize(entries.size());
  pool_->Run(static_cast<int64_t>(entries.size()), [&](int64_t i, int) {
    const SamplingParams& params = step.sampling[entries[i]];
    const BatchEntry& entry = step.micro_batch.entries[entries[i]];
    absl::Span<const int32_t> history;
    if (params.repetition_penalty != 1) history = histories_.find(entry.request)->second;
    absl::StatusOr<SampledToken> token = Sample(params, entry.first_token + entry.tokens, history,
                                                absl::MakeSpan(logits_.row(i), config_.vocabulary));
    if (token.ok()) {
      sampled[i] = *std::move(token);
    } else {
      statuses[i] = absl::Status(
          token.status().code(),
          absl::StrCat("request ", entry.request, ": ", token.status().message(),
                       "; what the last layer computed is: look at final norm and lm_head"));
    }
  });
  for (absl::Status& status : statuses) {
    if (!status.ok()) {
      sampled.clear();
      return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<StageExecutor>> MakeCpuExecutor(const DecoderConfig& config,
                                                               StageWeights weights,
                                                               const CpuExecutorOptions& options) {
  const auto too_small = [](const char* name, int64_t value) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; give 1 or more"));
  };
  if (options.threads < 1) return too_small("threads", options.threads);
  if (options.kv_block_tokens < 1) return too_small("kv_block_tokens", options.kv_block_tokens);
  if (options.kv_blocks < 1) return too_small("kv_blocks", options.kv_blocks);

  auto pool = std::make_unique<ThreadPool>(options.threads);
  absl::StatusOr<std::unique_ptr<Decoder>> decoder =
      Decoder::Load(config, std::move(weights), options.kv_block_tokens, pool.get());
  if (!decoder.ok()) return decoder.status();
  return std::make_unique<CpuExecutor>(config, options, std::move(pool), *std::move(decoder));
}

}  // namespace fabricast
