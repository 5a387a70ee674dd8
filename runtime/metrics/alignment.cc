#include "runtime/metrics/alignment.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace fabricast {
namespace {

using Entry = RunEvents::Entry;

// Entries that a description names one by one.
constexpr size_t kNamedEntries = 3;

// Where tokens of one request were computed.
struct Work {
  int32_t pass;  // of prefill; 0 of decodes
  int32_t first_token;
  int32_t end_token;
  int32_t step;
};

bool Before(const Work& a, const Work& b) {
  return std::tie(a.pass, a.first_token) < std::tie(b.pass, b.first_token);
}

// Counts how often the prompt of each request was begun anew.
class Passes {
 public:
  explicit Passes(size_t requests) : pass_(requests, 0), end_(requests, 0) {}

  // Of a prefill entry, all entries in their order.
  int32_t Of(const Entry& entry) {
    int32_t& end = end_[entry.request];
    if (entry.first_token < end) ++pass_[entry.request];
    end = entry.first_token + entry.tokens;
    return entry.decode ? 0 : pass_[entry.request];
  }

 private:
  std::vector<int32_t> pass_;
  std::vector<int32_t> end_;
};

// Finds the steps of a run from `from_step` on by the tokens that they compute.
class WorkIndex {
 public:
  WorkIndex(const RunEvents& run, int from_step)
      : decodes_(run.requests.size()), prefills_(run.requests.size()) {
    Passes passes(run.requests.size());
    for (int step = 0; step < static_cast<int>(run.steps.size()); ++step) {
      for (const Entry& entry : run.EntriesOf(step)) {
        const int32_t pass = passes.Of(entry);
        if (step < from_step) continue;
        std::vector<Work>& of = (entry.decode ? decodes_ : prefills_)[entry.request];
        of.push_back({pass, entry.first_token, entry.first_token + entry.tokens, step});
      }
    }
    for (auto* all : {&decodes_, &prefills_}) {
      for (std::vector<Work>& of : *all) std::stable_sort(of.begin(), of.end(), Before);
    }
  }

  // Adds to `shared` the tokens that each step shares with `entry` of request `request`.
  void Find(int request, const Entry& entry, int32_t pass, std::map<int, int64_t>& shared) const {
    const std::vector<Work>& of = (entry.decode ? decodes_ : prefills_)[request];
    const int32_t end = entry.first_token + entry.tokens;
    auto at = std::lower_bound(of.begin(), of.end(), Work{pass, entry.first_token, 0, 0}, Before);
    if (at != of.begin() && std::prev(at)->pass == pass) --at;
    for (; at != of.end() && at->pass == pass && at->first_token < end; ++at) {
      const int64_t overlap =
          std::min(end, at->end_token) - std::max(entry.first_token, at->first_token);
      if (overlap > 0) shared[at->step] += overlap;
    }
  }

 private:
  std::vector<std::vector<Work>> decodes_;
  std::vector<std::vector<Work>> prefills_;
};

bool SameEntry(const Entry& a, const Entry& b) {
  return a.first_token == b.first_token && a.tokens == b.tokens && a.decode == b.decode &&
         a.samples == b.samples;
}

bool Alike(const RunEvents::Step& a, const RunEvents::Step& b) {
  return a.decodes == b.decodes && a.prefill_tokens == b.prefill_tokens;
}

std::string Positions(int64_t first, int64_t tokens) {
  return tokens == 1 ? absl::StrCat(first) : absl::StrCat(first, "-", first + tokens - 1);
}

std::string EntryText(const RunEvents& run, const Entry& entry) {
  const RequestId id = run.requests[entry.request].id;
  if (entry.decode) {
    return absl::StrFormat("the decode of request %d at token %d", id, entry.first_token);
  }
  return absl::StrFormat("the prefill of request %d's tokens %s%s", id,
                         Positions(entry.first_token, entry.tokens),
                         entry.samples ? ", its last" : "");
}

std::string ListText(const std::vector<std::string>& names) {
  if (names.size() <= kNamedEntries) return absl::StrJoin(names, "; ");
  const std::vector<std::string> named(names.begin(), names.begin() + kNamedEntries);
  return absl::StrCat(absl::StrJoin(named, "; "), "; and ", names.size() - kNamedEntries, " more");
}

class Aligner {
 public:
  Aligner(const RunEvents& first, const RunEvents& second) : first_(first), second_(second) {}

  absl::StatusOr<Alignment> Align() {
    if (first_.stages != second_.stages) {
      return absl::InvalidArgumentError(
          absl::StrCat("not the same number of stages: ", first_.stages, " and ", second_.stages));
    }
    if (absl::Status status = MatchRequests(); !status.ok()) return status;
    FindSameSteps();
    PairSteps();
    return std::move(alignment_);
  }

 private:
  absl::Status MatchRequests() {
    absl::flat_hash_map<RequestId, int> second;
    for (size_t i = 0; i < second_.requests.size(); ++i) {
      second[second_.requests[i].id] = static_cast<int>(i);
    }
    for (const RunEvents::Request& request : first_.requests) {
      const auto match = second.find(request.id);
      alignment_.second_request.push_back(match == second.end() ? -1 : match->second);
      if (match == second.end()) continue;
      const int64_t other_tokens = second_.requests[match->second].prompt_tokens;
      if (request.prompt_tokens == other_tokens) continue;
      return absl::InvalidArgumentError(
          absl::StrFormat("not the same workload: request %d has a prompt of %d tokens in one and "
                          "of %d in the other",
                          request.id, request.prompt_tokens, other_tokens));
    }
    return absl::OkStatus();
  }

  // Entry by entry, in any order. The entries of `a` without their like in `b` go to `only`.
  template <typename RequestOf>
  void Subtract(const RunEvents& a, const RunEvents& b, int step, RequestOf request_of,
                std::vector<std::string>* only, bool& same) const {
    const absl::Span<const Entry> others = b.EntriesOf(step);
    for (const Entry& entry : a.EntriesOf(step)) {
      const int request = request_of(entry.request);
      const bool found = std::any_of(others.begin(), others.end(), [&](const Entry& other) {
        return other.request == request && SameEntry(entry, other);
      });
      if (found) continue;
      same = false;
      if (only != nullptr) only->push_back(EntryText(a, entry));
    }
  }

  // The same entries in the same order, which is the usual case.
  bool SameInOrder(int step) const {
    const absl::Span<const Entry> a = first_.EntriesOf(step);
    const absl::Span<const Entry> b = second_.EntriesOf(step);
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](const Entry& x, const Entry& y) {
      return alignment_.second_request[x.request] == y.request && SameEntry(x, y);
    });
  }

  void FindSameSteps() {
    std::vector<int> first_request(second_.requests.size(), -1);
    for (size_t i = 0; i < alignment_.second_request.size(); ++i) {
      const int match = alignment_.second_request[i];
      if (match >= 0) first_request[match] = static_cast<int>(i);
    }
    const auto to_second = [&](int request) { return alignment_.second_request[request]; };
    const auto to_first = [&](int request) { return first_request[request]; };
    const auto exists = [](const RunEvents& run, int step) {
      return step < static_cast<int>(run.steps.size());
    };
    for (int step = 0;; ++step) {
      alignment_.same_steps = step;
      const bool in_first = exists(first_, step);
      const bool in_second = exists(second_, step);
      if (!in_first && !in_second) return;
      if (!in_first || !in_second) {
        (in_first ? alignment_.only_in_second : alignment_.only_in_first) = "no more micro-batches";
        return;
      }
      bool same = first_.steps[step].generation == second_.steps[step].generation;
      if (same && SameInOrder(step)) continue;
      std::vector<std::string> only_first;
      std::vector<std::string> only_second;
      Subtract(first_, second_, step, to_second, &only_first, same);
      Subtract(second_, first_, step, to_first, &only_second, same);
      if (same) continue;
      if (only_first.empty() && only_second.empty()) {
        const bool first_lost = first_.steps[step].generation > second_.steps[step].generation;
        (first_lost ? alignment_.only_in_first : alignment_.only_in_second) =
            "the pipeline was lost before it";
      } else {
        alignment_.only_in_first = ListText(only_first);
        alignment_.only_in_second = ListText(only_second);
      }
      return;
    }
  }

  void PairSteps() {
    for (int step = 0; step < alignment_.same_steps; ++step) {
      const RunEvents::Step& of = first_.steps[step];
      alignment_.pairs.push_back({step, step, of.decodes + of.prefill_tokens, true});
    }
    const WorkIndex index(second_, alignment_.same_steps);
    std::vector<bool> paired(second_.steps.size(), false);
    Passes passes(first_.requests.size());
    for (int step = 0; step < static_cast<int>(first_.steps.size()); ++step) {
      std::map<int, int64_t> shared;
      for (const Entry& entry : first_.EntriesOf(step)) {
        const int32_t pass = passes.Of(entry);
        const int request = alignment_.second_request[entry.request];
        if (step >= alignment_.same_steps && request >= 0) index.Find(request, entry, pass, shared);
      }
      if (step < alignment_.same_steps) continue;
      if (shared.empty()) alignment_.first_alone.push_back(step);
      for (const auto& [other, tokens] : shared) {
        paired[other] = true;
        alignment_.pairs.push_back(
            {step, other, tokens, Alike(first_.steps[step], second_.steps[other])});
      }
    }
    for (size_t step = alignment_.same_steps; step < second_.steps.size(); ++step) {
      if (!paired[step]) alignment_.second_alone.push_back(static_cast<int>(step));
    }
  }

  const RunEvents& first_;
  const RunEvents& second_;
  Alignment alignment_;
};

}  // namespace

absl::StatusOr<Alignment> Align(const RunEvents& first, const RunEvents& second) {
  return Aligner(first, second).Align();
}

std::string SharedTokens(const RunEvents& first, int first_step, const RunEvents& second,
                         int second_step) {
  std::string text;
  const absl::Span<const Entry> others = second.EntriesOf(second_step);
  for (const Entry& entry : first.EntriesOf(first_step)) {
    const RequestId id = first.requests[entry.request].id;
    for (const Entry& other : others) {
      if (second.requests[other.request].id != id || other.decode != entry.decode) continue;
      const int32_t from = std::max(entry.first_token, other.first_token);
      const int32_t end =
          std::min(entry.first_token + entry.tokens, other.first_token + other.tokens);
      if (from >= end) continue;
      absl::StrAppend(&text, text.empty() ? "" : " ", id, ":", Positions(from, end - from));
    }
  }
  return text;
}

}  // namespace fabricast
