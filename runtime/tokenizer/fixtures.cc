#include "runtime/tokenizer/fixtures.h"

#include <fstream>

#include "runtime/check.h"
#include "runtime/tokenizer/byte_alphabet.h"

namespace fabricast {

std::string FixtureFolder(const std::string& name) { return "runtime/tokenizer/testdata/" + name; }

nlohmann::json ReadReference(const std::string& name) {
  const std::string path = FixtureFolder(name) + "/reference.json";
  std::ifstream in(path);
  FABRICAST_CHECK(in.good()) << path << " cannot be read";
  return nlohmann::json::parse(in);
}

nlohmann::json ByteTokenizer() {
  nlohmann::json vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary[TokenOfBytes(std::string(1, static_cast<char>(byte)))] = byte;
  }
  return {
      {"version", "1.0"},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", nlohmann::json::array()}}}};
}

}  // namespace fabricast
