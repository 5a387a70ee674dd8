#include "runtime/executor/cpu/kv_cache.h"

#include "absl/strings/str_cat.h"
#include "runtime/check.h"

namespace fabricast {

KvCache::KvCache(const KvShape& shape, int64_t blocks) : shape_(shape), max_blocks_(blocks) {
  FABRICAST_CHECK(shape.block_tokens > 0 && blocks > 0)
      << "block_tokens=" << shape.block_tokens << " blocks=" << blocks;
}

absl::Status KvCache::Extend(RequestId request, int64_t first_token, int64_t tokens) {
  FABRICAST_CHECK(tokens > 0) << "request=" << request << " tokens=" << tokens;
  Context& context = contexts_[request];
  FABRICAST_CHECK(first_token == context.tokens)
      << "request " << request << " continues at token " << first_token << ", but its context is "
      << context.tokens << " tokens long";
  const int64_t end = first_token + tokens;
  const int64_t needed = (end + shape_.block_tokens - 1) / shape_.block_tokens;
  while (static_cast<int64_t>(context.blocks.size()) < needed) {
    if (blocks_used_ == max_blocks_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("request ", request, " needs ", needed, " KV blocks of ",
                       shape_.block_tokens, " tokens, has ", context.blocks.size(), ", and all ",
                       max_blocks_, " of this stage are taken: give the scheduler no more blocks"));
    }
    if (free_.empty()) {
      allocated_.push_back(AllocateFloats(shape_.block_floats()));
      free_.push_back(allocated_.back().get());
    }
    context.blocks.push_back(free_.back());
    free_.pop_back();
    ++blocks_used_;
  }
  context.tokens = end;
  return absl::OkStatus();
}

void KvCache::Release(RequestId request) {
  const auto it = contexts_.find(request);
  if (it == contexts_.end()) return;
  blocks_used_ -= static_cast<int64_t>(it->second.blocks.size());
  free_.insert(free_.end(), it->second.blocks.rbegin(), it->second.blocks.rend());
  contexts_.erase(it);
}

void KvCache::Clear() {
  contexts_.clear();
  blocks_used_ = 0;
  free_.clear();
  for (auto block = allocated_.rbegin(); block != allocated_.rend(); ++block) {
    free_.push_back(block->get());
  }
}

KvSequence KvCache::Sequence(RequestId request, int64_t layer) const {
  const auto it = contexts_.find(request);
  FABRICAST_CHECK(it != contexts_.end()) << "request=" << request;
  return KvSequence(shape_, layer, it->second.blocks);
}

int64_t KvCache::bytes() const {
  return static_cast<int64_t>(allocated_.size()) * shape_.block_floats() *
         static_cast<int64_t>(sizeof(float));
}

}  // namespace fabricast
