// What a stage reads and holds of a checkpoint: its share.

#include <unistd.h>

#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "runtime/weights/checkpoint_writer.h"
#include "runtime/weights/stage_weights.h"

// The sanitizers', where there is one: their shadow is anonymous memory.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace fabricast {
namespace {

constexpr int64_t kKilobyte = 1024;  // of /proc

// A page fault maps neighbours that are in the page cache: 64 KiB around it by default
// (fault_around_bytes), and a large page of 2 MiB where the file system has them. A stage's tensors
// lie together in two runs at most (its layers; norm and lm_head), so there are four ends.
constexpr int64_t kNeighbours = 4 * (2 << 20);

// Names, shapes and what a heap adds.
constexpr int64_t kBookkeeping = 2 << 20;

// 4 layers of 1024 x 1024 (2 for q and o, 1/4 for k and v, 3 x 3 for the feed-forward layer) x
// 2 bytes = 24 MB, embedding and lm_head 8 MB each.
DecoderConfig Config() {
  DecoderConfig config;
  config.file = "config.json";
  config.architecture = "LlamaForCausalLM";
  config.vocabulary = 4096;
  config.hidden = 1024;
  config.layers = 4;
  config.heads = 8;
  config.kv_heads = 1;
  config.head_dim = 128;
  config.ffn = 3072;
  config.has_experts = {false, false, false, false};
  return config;
}

std::map<std::string, TensorSpecs> Shards() {
  std::map<std::string, TensorSpecs> shards = {
      {"1.safetensors", {{"model.embed_tokens.weight", {DType::kBf16, {4096, 1024}}}}},
      {"2.safetensors",
       {{"lm_head.weight", {DType::kBf16, {4096, 1024}}},
        {"model.norm.weight", {DType::kBf16, {1024}}}}}};
  for (int layer = 0; layer < 4; ++layer) {
    TensorSpecs& tensors = shards[layer < 2 ? "1.safetensors" : "2.safetensors"];
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    tensors[prefix + "input_layernorm.weight"] = {DType::kBf16, {1024}};
    tensors[prefix + "post_attention_layernorm.weight"] = {DType::kBf16, {1024}};
    tensors[prefix + "self_attn.q_proj.weight"] = {DType::kBf16, {1024, 1024}};
    tensors[prefix + "self_attn.k_proj.weight"] = {DType::kBf16, {128, 1024}};
    tensors[prefix + "self_attn.v_proj.weight"] = {DType::kBf16, {128, 1024}};
    tensors[prefix + "self_attn.o_proj.weight"] = {DType::kBf16, {1024, 1024}};
    tensors[prefix + "mlp.gate_proj.weight"] = {DType::kBf16, {3072, 1024}};
    tensors[prefix + "mlp.up_proj.weight"] = {DType::kBf16, {3072, 1024}};
    tensors[prefix + "mlp.down_proj.weight"] = {DType::kBf16, {1024, 3072}};
  }
  return shards;
}

// The number of a line like "Rss:    12 kB" of /proc, in bytes.
int64_t BytesOfLine(absl::string_view line) {
  const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
  int64_t kilobytes = 0;
  EXPECT_TRUE(words.size() >= 2 && absl::SimpleAtoi(words[1], &kilobytes)) << line;
  return kilobytes * kKilobyte;
}

// Of files in `folder`, what this process has mapped, and what of that is in its memory. Counted
// page by page, unlike RssFile of /proc/self/status.
struct Mapped {
  int64_t size = 0;
  int64_t resident = 0;
};

Mapped MappedFiles(const std::string& folder) {
  std::ifstream smaps("/proc/self/smaps");
  Mapped mapped;
  bool in_folder = false;
  for (std::string line; std::getline(smaps, line);) {
    if (absl::StrContains(line.substr(0, line.find(' ')), '-')) {  // "7f00-7f01 r--s ... path"
      in_folder = absl::StrContains(line, folder + "/");
    } else if (in_folder && absl::StartsWith(line, "Size:")) {
      mapped.size += BytesOfLine(line);
    } else if (in_folder && absl::StartsWith(line, "Rss:")) {
      mapped.resident += BytesOfLine(line);
    }
  }
  return mapped;
}

int64_t AnonymousMemory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (absl::StartsWith(line, "RssAnon:")) return BytesOfLine(line);
  }
  ADD_FAILURE() << "no RssAnon";
  return 0;
}

std::vector<Tensor> TensorsOf(const StageWeights& weights) {
  std::vector<Tensor> tensors;
  for (const LayerWeights& layer : weights.layers) {
    tensors.insert(tensors.end(), {layer.input_norm, layer.post_attention_norm});
    const FeedForwardWeights& mlp = *layer.feed_forward;
    for (const LinearWeights* linear :
         {&layer.q, &layer.k, &layer.v, &layer.o, &mlp.gate, &mlp.up, &mlp.down}) {
      tensors.push_back(*linear->dense);
    }
  }
  if (weights.embedding) tensors.push_back(*weights.embedding);
  if (weights.final_norm) tensors.push_back(*weights.final_norm);
  if (weights.lm_head) tensors.push_back(*weights.lm_head->dense);
  return tensors;
}

TEST(StageMemoryTest, AStageHoldsItsShareAndNoMore) {
  const TemporaryFolder folder;
  folder.WriteShards(Shards());
  for (int64_t stage = 0; stage < 4; ++stage) {
    const int64_t anonymous = AnonymousMemory();
    const auto checkpoint = Checkpoint::Open(folder.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const int64_t total = (*checkpoint)->total_bytes();
    EXPECT_GE(total, 110'000'000);
    const auto weights = FindStageWeights(
        *checkpoint, Config(),
        {.first_layer = stage, .num_layers = 1, .embedding = stage == 0, .lm_head = stage == 3});
    ASSERT_TRUE(weights.ok()) << weights.status();
    // All is mapped, and neither opening nor finding has touched a page of it.
    EXPECT_GE(MappedFiles(folder.path()).size, total);
    EXPECT_EQ(MappedFiles(folder.path()).resident, 0);

    const int64_t share = weights->bytes();
    EXPECT_LT(share, total / 3);
    const std::vector<Tensor> tensors = TensorsOf(*weights);
    int64_t sum = 0;
    for (const Tensor& tensor : tensors) {
      for (std::byte byte : tensor.bytes) sum += static_cast<int64_t>(byte);
    }
    EXPECT_GT(sum, share * 100);  // 125 on average
    const int64_t resident = MappedFiles(folder.path()).resident;
    EXPECT_GE(resident, share);
    EXPECT_LE(resident, share + kNeighbours);
    const int64_t heap = AnonymousMemory() - anonymous;
    if (__sanitizer_set_death_callback == nullptr) {
      EXPECT_LE(heap, kBookkeeping);
    }

    for (const Tensor& tensor : tensors) (*checkpoint)->Release(tensor);
    const int64_t released = MappedFiles(folder.path()).resident;
    EXPECT_LE(released, kNeighbours);
    std::cout << "stage " << stage << " of " << total << " bytes: share " << share << ", resident "
              << resident << " (" << resident - share << " more), heap " << heap
              << ", after release " << released << "\n";
  }
  EXPECT_EQ(MappedFiles(folder.path()).size, 0);
}

TEST(StageMemoryTest, ReleasingATensorKeepsThePagesThatItShares) {
  const TemporaryFolder folder;
  // With the header before it, it ends in the next page and fills none.
  folder.Write("model.safetensors", SafetensorsFile({{"a", {DType::kU8, {sysconf(_SC_PAGESIZE)}}},
                                                     {"b", {DType::kU8, {100}}}}));
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const Tensor& a = *(*checkpoint)->Find("a");
  EXPECT_EQ(static_cast<int>(a.bytes.front()), 0);
  EXPECT_EQ(static_cast<int>((*checkpoint)->Find("b")->bytes[99]), 99);
  const int64_t resident = MappedFiles(folder.path()).resident;
  EXPECT_EQ(resident, 2 * sysconf(_SC_PAGESIZE));
  (*checkpoint)->Release(a);
  EXPECT_EQ(MappedFiles(folder.path()).resident, resident);
}

}  // namespace
}  // namespace fabricast
