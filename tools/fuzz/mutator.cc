#include "tools/fuzz/mutator.h"

#include <array>
#include <cctype>
#include <utility>

namespace fabricast::fuzz {
namespace {

constexpr std::array<const char*, 12> kNumbers = {
    "0",   "-1",   "-0.0",   "1e308",      "1e-320",     "9223372036854775807",
    "nan", "-inf", "1e9999", "2147483648", "4294967296", "18446744073709551616"};

constexpr std::array<char, 10> kBytes = {'\0', '\x01', '\x7f', '\x80', '\xff',
                                         '\n', '"',    '{',    '}',    ','};

}  // namespace

Mutator::Mutator(std::vector<std::string> corpus, uint64_t seed)
    : corpus_(std::move(corpus)), generator_(seed) {
  corpus_.emplace_back();
}

std::string Mutator::Next() {
  std::string input = Pick();
  for (size_t mutations = 1 + Below(4); mutations > 0; --mutations) Mutate(input);
  if (input.size() > kMaxBytes) input.resize(kMaxBytes);
  return input;
}

void Mutator::Mutate(std::string& input) {
  const size_t at = Below(input.size() + 1);
  const size_t length = Below(input.size() - at + 1);
  switch (Below(9)) {
    case 0:  // Flip a bit.
      if (at < input.size()) input[at] ^= static_cast<char>(1 << Below(8));
      break;
    case 1:  // Put a byte that parsers care about.
      if (at < input.size()) input[at] = kBytes[Below(kBytes.size())];
      break;
    case 2:  // Cut the end off.
      input.resize(at);
      break;
    case 3:  // Cut a piece out.
      input.erase(at, length);
      break;
    case 4:  // Insert a few random bytes.
      for (size_t i = 1 + Below(8); i > 0; --i) input.insert(at, 1, static_cast<char>(Below(256)));
      break;
    case 5: {  // Say a piece again and again: deep nesting, long numbers, many fields.
      const std::string piece = input.substr(at, 1 + Below(32));
      const size_t copies = size_t{1} << Below(12);
      std::string repeated;
      for (size_t i = 0; i < copies && input.size() + repeated.size() < kMaxBytes; ++i) {
        repeated += piece;
      }
      input.insert(at, repeated);
      break;
    }
    case 6: {  // Go on as another input does.
      const std::string& other = Pick();
      input = input.substr(0, at) + other.substr(Below(other.size() + 1));
      break;
    }
    case 7:  // Move a piece elsewhere.
      if (length > 0) {
        const std::string piece = input.substr(at, length);
        input.erase(at, length);
        input.insert(Below(input.size() + 1), piece);
      }
      break;
    default:
      ReplaceNumber(input);
  }
}

void Mutator::ReplaceNumber(std::string& input) {
  const auto is_digit = [&](size_t i) {
    return isdigit(static_cast<unsigned char>(input[i])) != 0;
  };
  size_t begin = Below(input.size() + 1);
  while (begin < input.size() && !is_digit(begin)) ++begin;
  size_t end = begin;
  while (end < input.size() && is_digit(end)) ++end;
  if (begin < end) input.replace(begin, end - begin, kNumbers[Below(kNumbers.size())]);
}

}  // namespace fabricast::fuzz
