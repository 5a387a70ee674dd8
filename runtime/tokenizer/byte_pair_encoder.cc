#include "runtime/tokenizer/byte_pair_encoder.h"

#include <algorithm>
#include <utility>

#include "runtime/check.h"

namespace fabricast {
namespace {

constexpr size_t kMaxPieceBytes = size_t{1} << 30;  // places are int32_t

}  // namespace

// Joins neighbours in ids[first...]: a list of tokens, linked as they disappear, and a heap of the
// pairs that a rule joins.
class BytePairEncoder::Joiner {
 public:
  Joiner(const BytePairEncoder& encoder, bool may_become_special, std::vector<int32_t>& ids,
         size_t first)
      : encoder_(encoder),
        may_become_special_(may_become_special),
        ids_(ids.data() + first),
        count_(static_cast<int32_t>(ids.size() - first)),
        links_(static_cast<size_t>(count_)) {}

  // How many tokens are left, at the front.
  int32_t Run() {
    for (int32_t i = 0; i < count_; ++i) links_[i] = {i - 1, i + 1 < count_ ? i + 1 : kNone};
    for (int32_t i = 0; i + 1 < count_; ++i) Consider(i, /*ordered=*/false);
    std::make_heap(heap_.begin(), heap_.end(), Later);
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), Later);
      const Candidate candidate = heap_.back();
      heap_.pop_back();
      if (IsCurrent(candidate)) Join(candidate);
    }
    int32_t left = 0;
    for (int32_t i = 0; i != kNone && count_ > 0; i = links_[i].next) ids_[left++] = ids_[i];
    return left;
  }

 private:
  static constexpr int32_t kNone = -1;
  static constexpr int32_t kGone = -1;  // the token of a place that its left neighbour took over

  struct Link {
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    int32_t rank;
    int32_t place;  // of the left token
    int32_t left;   // the tokens when it was found
    int32_t right;
    int32_t joined;
  };
  static bool Later(const Candidate& a, const Candidate& b) {
    return std::pair(a.rank, a.place) > std::pair(b.rank, b.place);
  }

  void Consider(int32_t place, bool ordered) {
    const int32_t left = ids_[place];
    const int32_t right = ids_[links_[place].next];
    const auto rule = encoder_.rules_.find(PairKey(left, right));
    if (rule == encoder_.rules_.end()) return;
    if (rule->second.special && !may_become_special_) return;
    heap_.push_back({rule->second.rank, place, left, right, rule->second.token});
    if (ordered) std::push_heap(heap_.begin(), heap_.end(), Later);
  }

  bool IsCurrent(const Candidate& candidate) const {
    const int32_t next = links_[candidate.place].next;
    return ids_[candidate.place] == candidate.left && next != kNone &&
           ids_[next] == candidate.right;
  }

  void Join(const Candidate& candidate) {
    const int32_t place = candidate.place;
    const int32_t gone = links_[place].next;
    ids_[place] = candidate.joined;
    ids_[gone] = kGone;
    const int32_t next = links_[gone].next;
    links_[place].next = next;
    if (next != kNone) {
      links_[next].previous = place;
      Consider(place, /*ordered=*/true);
    }
    if (links_[place].previous != kNone) Consider(links_[place].previous, /*ordered=*/true);
  }

  const BytePairEncoder& encoder_;
  const bool may_become_special_;
  int32_t* const ids_;
  const int32_t count_;
  std::vector<Link> links_;
  std::vector<Candidate> heap_;
};

BytePairEncoder::BytePairEncoder(absl::flat_hash_map<absl::string_view, int32_t> tokens,
                                 const std::vector<Rule>& rules, const std::vector<bool>& special,
                                 const Options& options)
    : tokens_(std::move(tokens)), special_(special), options_(options) {
  rules_.reserve(rules.size());
  for (size_t i = 0; i < rules.size(); ++i) {
    const Rule& rule = rules[i];
    rules_[PairKey(rule.left, rule.right)] = {static_cast<int32_t>(i), rule.joined,
                                              special_[rule.joined]};
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    byte_tokens_[byte] = Find(absl::string_view(&c, 1)).value_or(-1);
  }
}

void BytePairEncoder::Encode(absl::string_view piece, bool may_become_special,
                             std::vector<int32_t>& ids) const {
  FABRICAST_CHECK(piece.size() <= kMaxPieceBytes) << "piece of " << piece.size() << " bytes";
  if (options_.ignore_merges) {
    const std::optional<int32_t> whole = Find(piece);
    if (whole.has_value() && (may_become_special || !special_[*whole])) {
      ids.push_back(*whole);
      return;
    }
  }
  const size_t first = ids.size();
  AppendBytes(piece, ids);
  const int32_t left = Joiner(*this, may_become_special, ids, first).Run();
  ids.resize(first + static_cast<size_t>(left));
}

void BytePairEncoder::AppendBytes(absl::string_view piece, std::vector<int32_t>& ids) const {
  bool after_unknown = false;
  for (const char byte : piece) {
    const int32_t token = byte_tokens_[static_cast<uint8_t>(byte)];
    if (token >= 0) {
      ids.push_back(token);
    } else if (options_.unknown.has_value() && !(after_unknown && options_.fuse_unknown)) {
      ids.push_back(*options_.unknown);
    }
    after_unknown = token < 0;
  }
}

std::optional<int32_t> BytePairEncoder::Find(absl::string_view bytes) const {
  const auto it = tokens_.find(bytes);
  if (it == tokens_.end()) return std::nullopt;
  return it->second;
}

}  // namespace fabricast
