#include "runtime/executor/cpu/attention.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "runtime/check.h"
#include "runtime/executor/cpu/targets.h"

// In this order.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/executor/cpu/attention.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
#include "runtime/executor/cpu/lanes-inl.h"
// clang-format on

#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_ATTENTION_CC_ONCE_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_ATTENTION_CC_ONCE_
namespace fabricast {

// Tokens between two rescalings; the keys of a tile, 32 KB at 128 dimensions, stay in the L1 or L2
// cache for all rows of a task.
constexpr int64_t kTile = 64;
// A task's rows are the heads that share a KV head, for as many queries as make this many: each
// reads the same tile.
constexpr int64_t kTaskRows = 64;
// Scores of a row: up to 15 floats beyond a tile are written and not used.
constexpr int64_t kScoreStride = kTile + kLanes;

// The rows of one KV head and some of its queries: row r is query first_query + r / group, head
// kv_head * group + r % group.
struct AttentionTask {
  const AttentionQueries* queries;
  int64_t kv_head;
  int64_t group;  // heads that share a KV head
  int64_t first_query;
  int64_t last_query;
};

struct AttentionScratch {
  float* scores;   // [rows, kScoreStride]
  float* values;   // [rows, value_stride]: sums of weights times values
  float* weights;  // [rows, 16]: sums of weights
  float* largest;  // [rows]
};

}  // namespace fabricast
#endif  // once

HWY_BEFORE_NAMESPACE();
namespace fabricast {
namespace HWY_NAMESPACE {

// What the registers hold: AVX-512 has 32 of 16 lanes, the others 16 of 8 or 4 lanes.
constexpr size_t kMostRows = kVectors == 1 ? 8 : 4;
constexpr size_t kScoreGroups = kVectors == 1 ? 2 : 1;

// Where a tile lies: the keys of its tokens in order, in groups of up to 16, and each one's value.
struct Tile {
  size_t tokens;
  size_t groups;
  const float* keys[kTile];
  size_t group_first[kTile];  // the group's first token in the tile
  const float* values[kTile];
};

HWY_NOINLINE void FindTile(const KvSequence& sequence, int64_t kv_head, int64_t first,
                           int64_t tokens, Tile& tile) {
  const int64_t block_tokens = sequence.shape().block_tokens;
  tile.tokens = static_cast<size_t>(tokens);
  tile.groups = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t position = first + i;
    tile.values[i] = sequence.Value(kv_head, position);
    // Tiles begin at multiples of 64 and groups at multiples of 16 within a block: the first group
    // of a tile may be entered in its middle.
    const int64_t in_group = position % block_tokens % kLanes;
    if (i == 0 || in_group == 0) {
      tile.keys[tile.groups] = sequence.Key(kv_head, position);
      tile.group_first[tile.groups] = static_cast<size_t>(i);
      ++tile.groups;
    }
  }
}

// Scores of `kRows` rows with `kGroups` groups of keys.
template <size_t kRows, size_t kGroups>
HWY_INLINE void ScoreGroups(const float* const (&queries)[kRows], size_t head_dim,
                            const float* const* keys, const size_t* first,
                            float* HWY_RESTRICT scores) {
  V16 sums[kRows][kGroups];
  HWY_UNROLL(8)
  for (size_t r = 0; r < kRows; ++r) {
    HWY_UNROLL(2) for (size_t g = 0; g < kGroups; ++g) sums[r][g] = Zero16();
  }
  for (size_t d = 0; d < head_dim; ++d) {
    V16 k[kGroups];
    HWY_UNROLL(2) for (size_t g = 0; g < kGroups; ++g) k[g] = Load16(keys[g] + d * kLanes);
    HWY_UNROLL(8)
    for (size_t r = 0; r < kRows; ++r) {
      const V16 q = Set16(queries[r][d]);
      HWY_UNROLL(2)
      for (size_t g = 0; g < kGroups; ++g) sums[r][g] = MulAdd16(q, k[g], sums[r][g]);
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    // In order: a group of fewer than 16 is followed, and its excess overwritten, by the next.
    for (size_t g = 0; g < kGroups; ++g) Store16(sums[r][g], scores + r * kScoreStride + first[g]);
  }
}

template <size_t kRows>
HWY_NOINLINE void Score(const float* const* query_rows, size_t head_dim, const Tile& tile,
                        float* HWY_RESTRICT scores) {
  const float* queries[kRows];
  for (size_t r = 0; r < kRows; ++r) queries[r] = query_rows[r];
  size_t g = 0;
  for (; g + kScoreGroups <= tile.groups; g += kScoreGroups) {
    ScoreGroups<kRows, kScoreGroups>(queries, head_dim, tile.keys + g, tile.group_first + g,
                                     scores);
  }
  for (; g < tile.groups; ++g) {
    ScoreGroups<kRows, 1>(queries, head_dim, tile.keys + g, tile.group_first + g, scores);
  }
}

// exp(x) for x <= 0; of NaN NaN, where Highway's is 0.
HWY_INLINE V ExpOrNaN(V x) { return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(D(), x)); }

HWY_INLINE float MaxOfLanes(const V16& a) {
  V m = a.v[0];
  for (size_t i = 1; i < kVectors; ++i) m = hn::Max(m, a.v[i]);
  return hn::GetLane(hn::MaxOfLanes(D(), m));
}

// Turns the first `tokens` scores of a row into weights, and scales down what it summed before.
HWY_NOINLINE void Weigh(size_t tokens, bool first_tile, size_t value_stride,
                        float* HWY_RESTRICT scores, float* HWY_RESTRICT values,
                        float* HWY_RESTRICT weights, float* HWY_RESTRICT largest) {
  // Below all scores, and finite: so that no difference of two is NaN.
  constexpr float kLowest = -1e38f;
  const size_t padded = (tokens + kLanes - 1) / kLanes * kLanes;
  for (size_t i = tokens; i < padded; ++i) scores[i] = kLowest;

  V16 max = Load16(scores);
  for (size_t i = kLanes; i < padded; i += kLanes) max = Max16(max, Load16(scores + i));
  float m = MaxOfLanes(max);
  V16 sum;
  if (first_tile) {
    sum = Zero16();
    for (size_t d = 0; d < value_stride; d += kLanes) Store16(Zero16(), values + d);
  } else {
    sum = Load16(weights);
    if (*largest > m) m = *largest;
    if (m != *largest) {
      const V shrink = ExpOrNaN(hn::Set(D(), *largest - m));
      for (size_t i = 0; i < kVectors; ++i) sum.v[i] = hn::Mul(sum.v[i], shrink);
      for (size_t d = 0; d < value_stride; d += kVector) {
        hn::StoreU(hn::Mul(hn::LoadU(D(), values + d), shrink), D(), values + d);
      }
    }
  }
  *largest = m;

  const V vm = hn::Set(D(), m);
  for (size_t i = 0; i < padded; i += kLanes) {
    for (size_t v = 0; v < kVectors; ++v) {
      float* p = scores + i + v * kVector;
      const V weight = ExpOrNaN(hn::Sub(hn::LoadU(D(), p), vm));
      hn::StoreU(weight, D(), p);
      sum.v[v] = hn::Add(sum.v[v], weight);
    }
  }
  Store16(sum, weights);
}

// values[row][d] += weights[row][token] * value[token][d], for kDims x 16 dimensions from d on.
template <size_t kRows, size_t kDims>
HWY_INLINE void AddValues(const Tile& tile, size_t tokens, size_t d, size_t value_stride,
                          const float* HWY_RESTRICT weights, float* HWY_RESTRICT values) {
  V16 sums[kRows][kDims];
  HWY_UNROLL(8)
  for (size_t r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (size_t i = 0; i < kDims; ++i) {
      sums[r][i] = Load16(values + r * value_stride + d + i * kLanes);
    }
  }
  for (size_t token = 0; token < tokens; ++token) {
    const float* value = tile.values[token] + d;
    V16 v[kDims];
    HWY_UNROLL(4) for (size_t i = 0; i < kDims; ++i) v[i] = Load16(value + i * kLanes);
    HWY_UNROLL(8)
    for (size_t r = 0; r < kRows; ++r) {
      const V16 weight = Set16(weights[r * kScoreStride + token]);
      HWY_UNROLL(4)
      for (size_t i = 0; i < kDims; ++i) sums[r][i] = MulAdd16(weight, v[i], sums[r][i]);
    }
  }
  HWY_UNROLL(8)
  for (size_t r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (size_t i = 0; i < kDims; ++i) {
      Store16(sums[r][i], values + r * value_stride + d + i * kLanes);
    }
  }
}

template <size_t kRows>
HWY_NOINLINE void AddValues(const Tile& tile, size_t tokens, size_t value_stride,
                            const float* weights, float* values) {
  constexpr size_t kDims = kVectors > 1 ? 1 : kRows > 4 ? 2 : 4;
  size_t d = 0;
  for (; d + kDims * kLanes <= value_stride; d += kDims * kLanes) {
    AddValues<kRows, kDims>(tile, tokens, d, value_stride, weights, values);
  }
  for (; d < value_stride; d += kLanes) {
    AddValues<kRows, 1>(tile, tokens, d, value_stride, weights, values);
  }
}

// The largest power of two up to `rows` and kMostRows.
HWY_INLINE size_t RowsAtOnce(size_t rows) {
  size_t at_once = kMostRows;
  while (at_once > rows) at_once /= 2;
  return at_once;
}

void Attend(const AttentionTask& task, const AttentionScratch& scratch) {
  const AttentionQueries& queries = *task.queries;
  const KvShape& shape = queries.sequence.shape();
  const size_t head_dim = static_cast<size_t>(shape.head_dim);
  const size_t value_stride = static_cast<size_t>(shape.value_stride());
  const int64_t first_head = task.kv_head * task.group;
  const int64_t rows = (task.last_query - task.first_query) * task.group;

  const float* query_rows[kTaskRows * 2];
  for (int64_t r = 0; r < rows; ++r) {
    query_rows[r] = queries.queries + (task.first_query + r / task.group) * queries.query_stride +
                    (first_head + r % task.group) * shape.head_dim;
  }
  // Tokens that row r sees: its query's position and all before.
  const auto context = [&](int64_t r) {
    return queries.first_position + task.first_query + r / task.group + 1;
  };
  const int64_t end = context(rows - 1);
  for (int64_t t = 0; t < end; t += kTile) {
    Tile tile;
    FindTile(queries.sequence, task.kv_head, t, std::min(kTile, end - t), tile);
    // A task's first queries may not reach its last tiles.
    int64_t first_row = 0;
    while (context(first_row) <= t) ++first_row;

    for (int64_t r = first_row; r < rows;) {
      const size_t at_once = RowsAtOnce(static_cast<size_t>(rows - r));
      float* scores = scratch.scores + r * kScoreStride;
      switch (at_once) {
        case 1:
          Score<1>(query_rows + r, head_dim, tile, scores);
          break;
        case 2:
          Score<2>(query_rows + r, head_dim, tile, scores);
          break;
        case 4:
          Score<4>(query_rows + r, head_dim, tile, scores);
          break;
        default:
          Score<kMostRows>(query_rows + r, head_dim, tile, scores);
          break;
      }
      r += static_cast<int64_t>(at_once);
    }

    const auto seen = [&](int64_t r) { return std::min(kTile, context(r) - t); };
    for (int64_t r = first_row; r < rows; ++r) {
      Weigh(static_cast<size_t>(seen(r)), t == 0, value_stride, scratch.scores + r * kScoreStride,
            scratch.values + r * static_cast<int64_t>(value_stride), scratch.weights + r * kLanes,
            scratch.largest + r);
    }

    for (int64_t r = first_row; r < rows;) {
      // Rows that see equally many tokens.
      int64_t equal = 1;
      while (r + equal < rows && equal < static_cast<int64_t>(kMostRows) &&
             seen(r + equal) == seen(r)) {
        ++equal;
      }
      const size_t at_once = RowsAtOnce(static_cast<size_t>(equal));
      const size_t tokens = static_cast<size_t>(seen(r));
      const float* weights = scratch.scores + r * kScoreStride;
      float* values = scratch.values + r * static_cast<int64_t>(value_stride);
      switch (at_once) {
        case 1:
          AddValues<1>(tile, tokens, value_stride, weights, values);
          break;
        case 2:
          AddValues<2>(tile, tokens, value_stride, weights, values);
          break;
        case 4:
          AddValues<4>(tile, tokens, value_stride, weights, values);
          break;
        default:
          AddValues<kMostRows>(tile, tokens, value_stride, weights, values);
          break;
      }
      r += static_cast<int64_t>(at_once);
    }
  }

  for (int64_t r = 0; r < rows; ++r) {
    const float sum = SumOfLanes(scratch.weights + r * kLanes);
    const float* values = scratch.values + r * static_cast<int64_t>(value_stride);
    float* output = queries.output + (task.first_query + r / task.group) * queries.output_stride +
                    (first_head + r % task.group) * shape.head_dim;
    for (int64_t d = 0; d < shape.head_dim; ++d) output[d] = values[d] / sum;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fabricast
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fabricast {

HWY_EXPORT(Attend);

Attention::Attention(const KvShape& shape, int64_t heads, ThreadPool* pool)
    : heads_(heads), kv_heads_(shape.kv_heads), pool_(pool) {
  FABRICAST_CHECK(heads % shape.kv_heads == 0) << "heads=" << heads << " kv=" << shape.kv_heads;
  const int64_t group = heads / shape.kv_heads;
  FABRICAST_CHECK(group <= 2 * kTaskRows) << "heads=" << heads << " kv_heads=" << shape.kv_heads;
  rows_ = std::max(group, kTaskRows / group * group);
  for (int i = 0; i < pool->threads(); ++i) {
    scratch_.push_back(AllocateFloats(rows_ * (kScoreStride + shape.value_stride() + kLanes + 1)));
  }
}

void Attention::Run(absl::Span<const AttentionQueries> requests) {
  const int64_t group = heads_ / kv_heads_;
  const int64_t queries_of_task = rows_ / group;
  first_task_.clear();
  int64_t tasks = 0;
  for (const AttentionQueries& request : requests) {
    first_task_.push_back(tasks);
    tasks += kv_heads_ * ((request.count + queries_of_task - 1) / queries_of_task);
  }
  const auto attend = HWY_DYNAMIC_DISPATCH(Attend);
  pool_->Run(tasks, [&](int64_t index, int thread) {
    const size_t at =
        std::upper_bound(first_task_.begin(), first_task_.end(), index) - first_task_.begin() - 1;
    const AttentionQueries& request = requests[at];
    const int64_t in_request = index - first_task_[at];
    // The last queries first: they have the longest context, and the loop ends evenly.
    const int64_t parts = (request.count + queries_of_task - 1) / queries_of_task;
    const int64_t part = parts - 1 - in_request / kv_heads_;
    float* scratch = scratch_[thread].get();
    const int64_t value_stride = request.sequence.shape().value_stride();
    attend({.queries = &request,
            .kv_head = in_request % kv_heads_,
            .group = group,
            .first_query = part * queries_of_task,
            .last_query = std::min(request.count, (part + 1) * queries_of_task)},
           {.scores = scratch,
            .values = scratch + rows_ * kScoreStride,
            .weights = scratch + rows_ * (kScoreStride + value_stride),
            .largest = scratch + rows_ * (kScoreStride + value_stride + kLanes)});
  });
}

}  // namespace fabricast
#endif  // HWY_ONCE
