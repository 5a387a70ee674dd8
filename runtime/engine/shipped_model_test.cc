// The shipped model from its files to text, against what transformers computes from the same files
// in float32 (runtime/model/checkpoints/prose_16m/README.md).

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/check.h"
#include "runtime/engine/cpu_pipeline.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/local_stages.h"
#include "runtime/model/decoder_config.h"
#include "runtime/model/model.h"
#include "runtime/plan/plan.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/checkpoint_writer.h"
#include "topology/topology.h"

namespace fabricast {
namespace {

constexpr char kFolder[] = "runtime/model/checkpoints/prose_16m";
constexpr int64_t kWindow = 511;  // tokens of held_out.txt at a time, after the begin token
constexpr int kContinuations = 3;

template <typename T>
T Sure(absl::StatusOr<T> value) {
  FABRICAST_CHECK(value.ok()) << value.status().ToString();
  return *std::move(value);
}

struct Deployment {
  std::string split;
  int stages;
  int64_t chunk_tokens = 512;
  int max_in_flight = 0;
  int64_t kv_block_tokens = 16;
  int64_t kv_blocks = 0;
  int threads = 1;
};

class ShippedModelTest : public ::testing::Test {
 protected:
  ShippedModelTest()
      : config_(Sure(LoadDecoderConfig(kFolder))),
        checkpoint_(Sure(Checkpoint::Open(kFolder))),
        tokenizer_(Sure(Tokenizer::Load(kFolder))) {
    // A checkpoint's file has another name; what is open stays when its folder goes.
    const TemporaryFolder copy;
    std::filesystem::copy_file(absl::StrCat(kFolder, "/reference.safetensors"),
                               copy.PathOf("model.safetensors"));
    reference_ = Sure(Checkpoint::Open(copy.path()));
    std::ifstream in(absl::StrCat(kFolder, "/reference.json"));
    facts_ = nlohmann::json::parse(in);
  }

  template <typename T>
  std::vector<T> Recorded(const std::string& name) const {
    const Tensor* tensor = reference_->Find(name);
    FABRICAST_CHECK(tensor != nullptr) << name;
    std::vector<T> values(tensor->bytes.size() / sizeof(T));
    std::memcpy(values.data(), tensor->bytes.data(), tensor->bytes.size());
    return values;
  }

  Plan MakePlanOf(const Deployment& deployment) const {
    PlanOptions options;
    FABRICAST_CHECK(ParseSplit(deployment.split, options).ok());
    options.stages = deployment.stages;
    options.max_in_flight = deployment.max_in_flight;
    options.max_chunk_tokens = deployment.chunk_tokens;
    options.max_running = 64;
    options.kv_block_tokens = deployment.kv_block_tokens;
    options.kv_blocks = deployment.kv_blocks;
    return Sure(MakePlan(Sure(Topology::Load("local_cpu")), Sure(LoadModel(kFolder)), options));
  }

  struct Generated {
    std::vector<int32_t> tokens;
    std::string text;
  };

  // The recorded prompts, all at once.
  std::vector<Generated> Generate(const Deployment& deployment, const SamplingParams& sampling,
                                  int64_t* preemptions = nullptr) const {
    Plan plan = MakePlanOf(deployment);
    std::vector<std::unique_ptr<StageExecutor>> stages =
        Sure(MakeCpuStages(config_, checkpoint_, deployment.threads, plan));
    Engine engine({.scheduler = plan.scheduler, .tokenizer = tokenizer_},
                  MakeLocalStages(std::move(stages)));
    std::vector<Generated> generated(kContinuations);
    for (int k = 0; k < kContinuations; ++k) {
      GenerationRequest request;
      request.prompt = Recorded<int32_t>(absl::StrCat("greedy_", k, ".prompt_ids"));
      request.max_output_tokens = 48;
      request.sampling = sampling;
      request.sampling.seed += k;
      engine.Submit(std::move(request), [&generated, k](const GenerationUpdate& update) {
        if (update.token.has_value()) generated[k].tokens.push_back(update.token->token);
        generated[k].text += update.text;
      });
    }
    const absl::Status status = engine.WaitUntilIdle();
    FABRICAST_CHECK(status.ok()) << status.ToString();
    const Result result = engine.Finish();
    if (preemptions != nullptr) *preemptions += result.preemptions();
    return generated;
  }

  const DecoderConfig config_;
  const std::shared_ptr<const Checkpoint> checkpoint_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const Checkpoint> reference_;
  nlohmann::json facts_;
};

const std::vector<Deployment>& Deployments() {
  static const auto& deployments = *new std::vector<Deployment>{
      {.split = "even", .stages = 1},
      {.split = "even", .stages = 1, .chunk_tokens = 1, .threads = 2},
      {.split = "even", .stages = 2, .chunk_tokens = 3},
      {.split = "1,8", .stages = 2, .max_in_flight = 1},
      {.split = "even", .stages = 3, .max_in_flight = 5, .kv_block_tokens = 1},
      {.split = "1,7,1", .stages = 3, .chunk_tokens = 2, .kv_block_tokens = 7},
      // Room for about two of the three: one is preempted and computed again.
      {.split = "6,2,1", .stages = 3, .kv_block_tokens = 4, .kv_blocks = 24},
  };
  return deployments;
}

TEST_F(ShippedModelTest, GreedyContinuationsAreTheReferences) {
  int64_t preemptions = 0;
  for (const Deployment& deployment : Deployments()) {
    const std::vector<Generated> generated = Generate(deployment, {}, &preemptions);
    for (int k = 0; k < kContinuations; ++k) {
      EXPECT_EQ(generated[k].tokens, Recorded<int32_t>(absl::StrCat("greedy_", k, ".ids")))
          << deployment.split;
      EXPECT_EQ(generated[k].text, facts_["continuations"][k]["text"]);
    }
  }
  EXPECT_GT(preemptions, 0);
}

TEST_F(ShippedModelTest, SampledTokensDoNotDependOnTheDeployment) {
  const SamplingParams sampling = {
      .temperature = 1, .top_p = 0.95, .top_k = 100, .repetition_penalty = 1.1, .seed = 5};
  const std::vector<Generated> first = Generate(Deployments()[0], sampling);
  EXPECT_NE(first[0].tokens, Recorded<int32_t>("greedy_0.ids"));
  for (const Deployment& deployment : Deployments()) {
    const std::vector<Generated> generated = Generate(deployment, sampling);
    for (int k = 0; k < kContinuations; ++k) {
      EXPECT_EQ(generated[k].tokens, first[k].tokens) << deployment.split;
    }
  }
  SamplingParams other = sampling;
  other.seed = 50;
  EXPECT_NE(Generate(Deployments()[0], other)[0].tokens, first[0].tokens);
}

TEST_F(ShippedModelTest, TheHeldOutTextIsTokenizedAsTheReferenceDoes) {
  std::ifstream in(absl::StrCat(kFolder, "/held_out.txt"));
  const std::string text(std::istreambuf_iterator<char>(in), {});
  const std::vector<int32_t> ids = Sure(tokenizer_->Encode(text, /*add_special_tokens=*/false));
  EXPECT_EQ(ids, Recorded<int32_t>("held_out.ids"));
  EXPECT_EQ(tokenizer_->Decode(ids, /*skip_special_tokens=*/false), text);
}

// Teacher forcing: windows are requests, decoded side by side, one token a step. The
// log-probability of the token that follows is read from those of the whole vocabulary.
//
// Tolerance: 3e-4 a token. Logits differ in float32 by some 1e-5 of their size of up to 20 (derived
// in runtime/executor/cpu/reference_test.cc); float16 arithmetic is off by 0.028 already.
TEST_F(ShippedModelTest, PerplexityOfHeldOutTextIsTheReferences) {
  const std::vector<int32_t> ids = Recorded<int32_t>("held_out.ids");
  const std::vector<float> expected = Recorded<float>("held_out.nll");
  ASSERT_EQ(ids.size(), expected.size());
  Plan plan = MakePlanOf({.split = "even", .stages = 1});
  const std::unique_ptr<StageExecutor> executor =
      std::move(Sure(MakeCpuStages(config_, checkpoint_, /*threads=*/2, plan))[0]);
  const int64_t tokens = static_cast<int64_t>(ids.size());
  const int64_t windows = (tokens + kWindow - 1) / kWindow;
  double sum = 0;
  double largest_difference = 0;
  for (int64_t position = 0; position < kWindow; ++position) {
    Step step;
    step.micro_batch.id = position;
    std::vector<int64_t> predicted;  // index into ids, one an entry
    for (int64_t window = 0; window < windows; ++window) {
      const int64_t next = window * kWindow + position;
      if (next >= tokens) continue;
      step.micro_batch.entries.push_back({.request = window,
                                          .first_token = position,
                                          .tokens = 1,
                                          .decode = position > 0,
                                          .samples = true});
      step.tokens.push_back(position == 0 ? *config_.begin_of_sequence : ids[next - 1]);
      step.sampling.push_back({.logprobs = static_cast<int>(config_.vocabulary)});
      predicted.push_back(next);
    }
    std::vector<SampledToken> sampled;
    ASSERT_TRUE(executor->Run(step, {}, {}, sampled).ok());
    ASSERT_EQ(sampled.size(), predicted.size());
    for (size_t i = 0; i < sampled.size(); ++i) {
      for (const TokenLogprob& token : sampled[i].top) {
        if (token.token != ids[predicted[i]]) continue;
        sum -= token.logprob;
        largest_difference = std::max(largest_difference,
                                      std::fabs(-token.logprob - double{expected[predicted[i]]}));
      }
    }
  }
  const double perplexity = std::exp(sum / static_cast<double>(tokens));
  EXPECT_LT(largest_difference, 3e-4);
  EXPECT_NEAR(perplexity, facts_["perplexity"].get<double>(), 26.4 * 3e-4);
  RecordProperty("perplexity", absl::StrCat(perplexity));
  RecordProperty("largest_difference", absl::StrCat(largest_difference));
  std::cout << "perplexity " << perplexity << ", a token differs by at most " << largest_difference
            << " nats\n";
}

}  // namespace
}  // namespace fabricast
