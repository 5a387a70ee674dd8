#ifndef FABRICAST_TOOLS_FUZZ_MUTATOR_H_
#define FABRICAST_TOOLS_FUZZ_MUTATOR_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace fabricast::fuzz {

// Makes new inputs out of a corpus by flipping, cutting, inserting, repeating and splicing bytes,
// and by putting extreme numbers where digits were. The same corpus and seed give the same inputs
// on every machine.
class Mutator {
 public:
  // No input is longer than this.
  static constexpr size_t kMaxBytes = 1 << 16;

  // An empty input is added to the corpus.
  Mutator(std::vector<std::string> corpus, uint64_t seed);

  std::string Next();

 private:
  // Uniform enough in [0, bound), for a bound of at least 1.
  size_t Below(size_t bound) { return generator_() % bound; }
  const std::string& Pick() { return corpus_[Below(corpus_.size())]; }
  void Mutate(std::string& input);
  void ReplaceNumber(std::string& input);

  std::vector<std::string> corpus_;
  std::mt19937_64
      generator_;  // Its output is fixed by the standard, unlike that of the distributions.
};

}  // namespace fabricast::fuzz

#endif  // FABRICAST_TOOLS_FUZZ_MUTATOR_H_
