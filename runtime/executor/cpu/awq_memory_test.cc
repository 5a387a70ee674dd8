// What an AWQ stage holds in memory: its share of the checkpoint, once.

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/executor/cpu/cpu_executor.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/checkpoint_writer.h"
#include "runtime/weights/stage_weights.h"

// The sanitizers', where there is one: their shadow is anonymous memory.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace fabricast {
namespace {

// The memory that this process has now: pages of its own and of files.
int64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t size = 0;
  int64_t resident = 0;
  statm >> size >> resident;
  return resident * 4096;
}

DecoderConfig Config() {
  DecoderConfig config;
  config.file = "config.json";
  config.architecture = "LlamaForCausalLM";
  config.vocabulary = 256;
  config.hidden = 1024;
  config.layers = 6;
  config.heads = 8;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.ffn = 4096;
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 10000;
  config.has_experts = std::vector<bool>(6, false);
  config.awq = AwqConfig{.group_size = 128, .not_converted = {"lm_head"}};
  return config;
}

TensorSpecs Tensors() {
  TensorSpecs tensors = {{"model.embed_tokens.weight", {DType::kF16, {256, 1024}}},
                         {"lm_head.weight", {DType::kF16, {256, 1024}}},
                         {"model.norm.weight", {DType::kF16, {1024}}}};
  for (int layer = 0; layer < 6; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const auto linear = [&](const std::string& name, int64_t in, int64_t out) {
      tensors[prefix + name + ".qweight"] = {DType::kI32, {in, out / 8}};
      tensors[prefix + name + ".qzeros"] = {DType::kI32, {in / 128, out / 8}};
      tensors[prefix + name + ".scales"] = {DType::kF16, {in / 128, out}};
    };
    tensors[prefix + "input_layernorm.weight"] = {DType::kF16, {1024}};
    tensors[prefix + "post_attention_layernorm.weight"] = {DType::kF16, {1024}};
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      linear(absl::StrCat("self_attn.", name), 1024, 1024);
    }
    linear("mlp.gate_proj", 1024, 4096);
    linear("mlp.up_proj", 1024, 4096);
    linear("mlp.down_proj", 4096, 1024);
  }
  return tensors;
}

// 6 layers of 16.8e6 weights at 4.16 bits are 52 MB. While a tensor is repacked, it (2 MB) and its
// copy are there; fault_around_bytes maps up to 2 MiB of neighbours at either end of a tensor.
TEST(AwqMemoryTest, AStageHoldsItsShareOnce) {
  if (__sanitizer_set_death_callback != nullptr)
    GTEST_SKIP() << "a sanitizer has memory of its own";
  const TemporaryFolder folder;
  folder.Write("model.safetensors", SafetensorsFile(Tensors()));
  absl::StatusOr<std::shared_ptr<const Checkpoint>> checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  absl::StatusOr<StageWeights> weights = FindStageWeights(
      *checkpoint, Config(), {.num_layers = 6, .embedding = true, .lm_head = true});
  ASSERT_TRUE(weights.ok()) << weights.status();
  const int64_t share = weights->bytes();
  ASSERT_GT(share, 50'000'000);

  const int64_t before = ResidentBytes();
  absl::StatusOr<std::unique_ptr<StageExecutor>> executor =
      MakeCpuExecutor(Config(), *std::move(weights), {.threads = 1, .kv_blocks = 10});
  ASSERT_TRUE(executor.ok()) << executor.status();
  const int64_t grown = ResidentBytes() - before;
  EXPECT_LT(grown, share * 102 / 100 + (8 << 20));
  EXPECT_GT(grown, share / 2);
  RecordProperty("share", absl::StrCat(share));
  RecordProperty("resident", absl::StrCat(grown));
}

}  // namespace
}  // namespace fabricast
