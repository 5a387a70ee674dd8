#ifndef FABRICAST_RUNTIME_TOKENIZER_BYTE_PAIR_ENCODER_H_
#define FABRICAST_RUNTIME_TOKENIZER_BYTE_PAIR_ENCODER_H_

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace fabricast {

// Byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's variant on bytes): a piece starts as
// one token a byte, and as long as there is one, the earliest rule of the list, at its leftmost
// place, joins two neighbours.
//
// Thread-safe.
class BytePairEncoder {
 public:
  // Two neighbours, and the token of both. Of rules for the same pair the last counts.
  struct Rule {
    int32_t left;
    int32_t right;
    int32_t joined;
  };

  struct Options {
    // A piece that is a token is that token, whether the rules lead there or not.
    bool ignore_merges = false;
    // Stands for a byte that is no token; if none, such bytes are left out.
    std::optional<int32_t> unknown = std::nullopt;
    bool fuse_unknown = false;  // one for neighbouring unknown bytes
  };

  // `tokens`: by their bytes, which must outlive this. `special`, by id: see below.
  BytePairEncoder(absl::flat_hash_map<absl::string_view, int32_t> tokens,
                  const std::vector<Rule>& rules, const std::vector<bool>& special,
                  const Options& options);

  // Appends the tokens of `piece`, at most 2^30 bytes, in O(n log n). Unless
  // `may_become_special`, no two tokens are joined to a special one, nor is a whole piece taken
  // for one.
  void Encode(absl::string_view piece, bool may_become_special, std::vector<int32_t>& ids) const;

  std::optional<int32_t> Find(absl::string_view bytes) const;

 private:
  struct Joined {
    int32_t rank;  // of the rule; the lower, the earlier
    int32_t token;
    bool special;
  };
  class Joiner;
  static uint64_t PairKey(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }

  void AppendBytes(absl::string_view piece, std::vector<int32_t>& ids) const;

  absl::flat_hash_map<absl::string_view, int32_t> tokens_;
  absl::flat_hash_map<uint64_t, Joined> rules_;
  std::array<int32_t, 256> byte_tokens_;  // -1: none
  std::vector<bool> special_;
  const Options options_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TOKENIZER_BYTE_PAIR_ENCODER_H_
