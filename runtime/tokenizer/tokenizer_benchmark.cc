// What text costs: a prompt must be encoded, and a token decoded, in far less time than the model
// takes for them.
//
// On the small tokenizers of testdata/. Their words are shorter than Llama 3's, so a real
// vocabulary has fewer tokens to a byte.

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer/fixtures.h"
#include "runtime/tokenizer/tokenizer.h"

namespace fabricast {
namespace {

constexpr const char* kFixtures[] = {"llama3", "qwen3"};

void Verify(bool holds, const char* what) {
  if (holds) return;
  std::cerr << "tokenizer_benchmark: " << what << "\n";
  std::exit(1);
}

std::shared_ptr<const Tokenizer> Load(int64_t fixture) {
  auto tokenizer = Tokenizer::Load(FixtureFolder(kFixtures[fixture]));
  Verify(tokenizer.ok(), "run it with `bazel run`: it reads runtime/tokenizer/testdata");
  return *std::move(tokenizer);
}

// Some 100 kB of English.
std::string English() {
  const std::string paragraph =
      "The capacity planner asks what-if questions: would 400 Gbps help this topology, by how "
      "much, "
      "and how sure are we? It's answered with a forecast, a real run beside it, and the error "
      "between the two.\n\nFor 2,048 tokens the boundary carries 67 MB; that's 2.7 ms at 200 "
      "Gbps.\n";
  std::string text;
  while (text.size() < 100'000) text += paragraph;
  return text;
}

// Some 100 kB of text with marks and characters of several bytes.
std::string Mixed() {
  const std::string paragraph =
      "Wie gro\u00DF ist der Unterschied? \u4E00\u4E2A\u6A21\u578B\u9700\u8981\u591A\u5C11\u663E"
      "\u5B58\uFF1F Cafe\u0301, nai\u0308ve. \uC548\uB155\uD558\uC138\uC694 \u043F\u0440\u0438"
      "\u0432\u0435\u0442 \U0001F600\n";
  std::string text;
  while (text.size() < 100'000) text += paragraph;
  return text;
}

void Encode(benchmark::State& state, const std::string& text) {
  const auto tokenizer = Load(state.range(0));
  const auto ids = tokenizer->Encode(text, false);
  Verify(ids.ok() && tokenizer->Encode(tokenizer->Decode(*ids, false), false) == ids,
         "the text does not come back");
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer->Encode(text, false));
  state.SetLabel(kFixtures[state.range(0)]);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(ids->size()));
}

void BM_EncodeEnglish(benchmark::State& state) { Encode(state, English()); }
void BM_EncodeMixed(benchmark::State& state) { Encode(state, Mixed()); }
// One piece: the worst case of merging.
void BM_EncodeOneLetter(benchmark::State& state) { Encode(state, std::string(1'000'000, 'a')); }
BENCHMARK(BM_EncodeEnglish)->Arg(0)->Arg(1);
BENCHMARK(BM_EncodeMixed)->Arg(0)->Arg(1);
BENCHMARK(BM_EncodeOneLetter)->Arg(0)->Arg(1);

// A decoding step's share: one token to text.
void BM_Append(benchmark::State& state) {
  const auto tokenizer = Load(0);
  const std::string text = Mixed();
  const std::vector<int32_t> ids = *tokenizer->Encode(text, false);
  std::string decoded;
  Detokenizer detokenizer(*tokenizer, true);
  for (const int32_t id : ids) decoded += detokenizer.Append(id);
  Verify(decoded == text, "the text does not come back");
  for (auto _ : state) {
    for (const int32_t id : ids) benchmark::DoNotOptimize(detokenizer.Append(id));
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(ids.size()));
}
BENCHMARK(BM_Append);

void BM_Decode(benchmark::State& state) {
  const auto tokenizer = Load(0);
  const std::vector<int32_t> ids = *tokenizer->Encode(Mixed(), false);
  Verify(tokenizer->Decode(ids, true) == Mixed(), "the text does not come back");
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer->Decode(ids, true));
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(ids.size()));
}
BENCHMARK(BM_Decode);

// As many tokens and merges as Llama 3 has: 128,000 and 280,000.
void BM_ParseLarge(benchmark::State& state) {
  nlohmann::json json = ByteTokenizer();
  nlohmann::json& vocabulary = json["model"]["vocab"];
  std::vector<std::string> words;
  for (char c = 'a'; c <= 'z'; ++c) words.emplace_back(1, c);
  for (size_t i = 0; words.size() < 127'770; ++i) {
    for (char c = 'a'; c <= 'z' && words.size() < 127'770; ++c) words.push_back(words[i] + c);
  }
  for (size_t i = 26; i < words.size(); ++i) vocabulary[words[i]] = 230 + i;
  nlohmann::json& merges = json["model"]["merges"];
  while (merges.size() < 280'000) {
    for (size_t i = 26; i < words.size() && merges.size() < 280'000; ++i) {
      merges.push_back(words[i].substr(0, words[i].size() - 1) + " " + words[i].back());
    }
  }
  const std::string text = json.dump();
  Verify(Tokenizer::Parse("large", text).ok(), "the large vocabulary does not parse");
  for (auto _ : state) benchmark::DoNotOptimize(Tokenizer::Parse("large", text));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
}
BENCHMARK(BM_ParseLarge)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace fabricast
