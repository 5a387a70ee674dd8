#ifndef FABRICAST_RUNTIME_TOKENIZER_FIXTURES_H_
#define FABRICAST_RUNTIME_TOKENIZER_FIXTURES_H_

#include <string>

#include "nlohmann/json.hpp"

namespace fabricast {

// A folder of testdata/: "llama3", "qwen3" or "added_tokens".
std::string FixtureFolder(const std::string& name);

// Its reference.json: testdata/README.md says what is in it.
nlohmann::json ReadReference(const std::string& name);

// A tokenizer.json whose tokens are the 256 bytes, each with its own number, and nothing else: no
// merges, added tokens, normaliser, split or post-processor.
nlohmann::json ByteTokenizer();

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TOKENIZER_FIXTURES_H_
