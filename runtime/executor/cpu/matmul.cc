#include "runtime/executor/cpu/matmul.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "runtime/check.h"
#include "runtime/executor/cpu/targets.h"

// In this order.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/executor/cpu/matmul.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "runtime/executor/cpu/lanes-inl.h"
// clang-format on

#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_MATMUL_CC_ONCE_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_MATMUL_CC_ONCE_
namespace fabricast {

// Outputs of a task: their weights for kBlockInputs inputs, 240 KB as BF16, stay in the L2 cache
// for all rows. A multiple of a tile's outputs on each target.
constexpr int64_t kTaskOutputs = 60;
// Of a tile's rows (4 x 8 KB of float32 stay in the L1 cache for all outputs of a task).
constexpr int64_t kBlockInputs = 2048;
// Rows of which the lanes of all sums are kept from one block of inputs to the next: 32 x 60 x 64
// B.
constexpr int64_t kBlockRows = 32;
// Rows of a task, at most: so that there are tasks for many threads when there are many rows.
constexpr int64_t kTaskRows = 128;
static_assert(kBlockInputs % AwqBlocks::kInputs == 0);

// AWQ weights that so many rows use are converted first, kPanelInputs of each of a task's outputs,
// 240 KB of float32: a tile that converts them itself takes half as long again, and converting them
// once as long as that costs in two tiles of 4 rows.
constexpr int64_t kPanelRows = 9;
constexpr int64_t kPanelInputs = 1024;
static_assert(kPanelInputs % AwqBlocks::kInputs == 0);

constexpr int64_t kPanelFloats = kTaskOutputs * kPanelInputs;
constexpr int64_t kSumFloats = kBlockRows * kTaskOutputs * kLanes;

// A part of a product: outputs [first_output, last_output) of rows [first_row, last_row).
struct ProductPart {
  const Product* product;
  int64_t first_output;
  int64_t last_output;
  int64_t first_row;
  int64_t last_row;
};

// A thread's scratch.
struct MatMulScratch {
  float* sums;    // [kBlockRows, kTaskOutputs, kLanes]
  float* panel;   // [kTaskOutputs, kPanelInputs]
  float* scales;  // AWQ: [kTaskOutputs, groups + 16]
  float* zeros;
};

}  // namespace fabricast
#endif  // once

HWY_BEFORE_NAMESPACE();
namespace fabricast {
namespace HWY_NAMESPACE {

// A tile keeps rows x columns x 16 sums in registers. AVX-512 has 32 registers of 16 lanes: 24
// sums, 4 vectors of inputs and one of weights. AVX2 has 16 of 8 lanes: 12, 2 and one.
constexpr size_t kTileRows = kVectors == 1 ? 4 : 2;
constexpr size_t kTileColumns = kVectors == 1 ? 6 : 3;
static_assert(kTaskOutputs % kTileColumns == 0);

// What a tile multiplies: inputs [first, last) of kRows rows.
struct TileInputs {
  const float* rows;  // the first, at input 0
  size_t stride;
  size_t first;
  size_t last;
};

template <size_t kRows>
struct Sums {
  V lanes[kRows][kTileColumns][kVectors];

  // `stride` floats between rows; 16 between columns.
  HWY_INLINE void Load(bool zero, const float* p, size_t stride) {
    HWY_UNROLL(4)
    for (size_t r = 0; r < kRows; ++r) {
      HWY_UNROLL(6)
      for (size_t c = 0; c < kTileColumns; ++c) {
        HWY_UNROLL(4)
        for (size_t i = 0; i < kVectors; ++i) {
          lanes[r][c][i] =
              zero ? hn::Zero(D()) : hn::LoadU(D(), p + r * stride + c * kLanes + i * kVector);
        }
      }
    }
  }
  HWY_INLINE void Store(float* p, size_t stride) const {
    HWY_UNROLL(4)
    for (size_t r = 0; r < kRows; ++r) {
      HWY_UNROLL(6)
      for (size_t c = 0; c < kTileColumns; ++c) {
        HWY_UNROLL(4)
        for (size_t i = 0; i < kVectors; ++i) {
          hn::StoreU(lanes[r][c][i], D(), p + r * stride + c * kLanes + i * kVector);
        }
      }
    }
  }
  // `weights(c, i)`: vector i of 16 weights of column c. `input`: of 16 of each row.
  template <typename Weights>
  HWY_INLINE void AddProducts(const float* input, size_t stride, const Weights& weights) {
    HWY_UNROLL(4)
    for (size_t i = 0; i < kVectors; ++i) {
      V x[kRows];
      HWY_UNROLL(4)
      for (size_t r = 0; r < kRows; ++r) {
        x[r] = hn::LoadU(D(), input + r * stride + i * kVector);
      }
      HWY_UNROLL(6)
      for (size_t c = 0; c < kTileColumns; ++c) {
        const V w = weights(c, i);
        HWY_UNROLL(4)
        for (size_t r = 0; r < kRows; ++r) {
          lanes[r][c][i] = hn::MulAdd(x[r], w, lanes[r][c][i]);
        }
      }
    }
  }
};

// `weights`: of output 0 and input 0, `weights_stride` elements between outputs. Outputs beyond
// `last_output` repeat it.
template <WeightFormat kFormat, size_t kRows>
HWY_NOINLINE void DenseTile(const uint8_t* weights, size_t weights_stride, size_t output,
                            size_t last_output, const TileInputs& inputs, bool zero,
                            float* HWY_RESTRICT sums, size_t sums_stride) {
  constexpr size_t kBytes = kWeightBytes<kFormat>;
  const uint8_t* columns[kTileColumns];
  for (size_t c = 0; c < kTileColumns; ++c) {
    columns[c] = weights + HWY_MIN(output + c, last_output) * weights_stride * kBytes;
  }
  Sums<kRows> tile;
  tile.Load(zero, sums, sums_stride);
  size_t k = inputs.first;
  for (; k + kLanes <= inputs.last; k += kLanes) {
    tile.AddProducts(inputs.rows + k, inputs.stride, [&](size_t c, size_t i) {
      return LoadWeights<kFormat>(columns[c] + (k + i * kVector) * kBytes);
    });
  }
  if (k < inputs.last) {
    alignas(64) uint8_t tails[kTileColumns][kLanes * kBytes] = {};
    for (size_t c = 0; c < kTileColumns; ++c) {
      std::memcpy(tails[c], columns[c] + k * kBytes, (inputs.last - k) * kBytes);
    }
    tile.AddProducts(inputs.rows + k, inputs.stride, [&](size_t c, size_t i) {
      return LoadWeights<kFormat>(tails[c] + i * kVector * kBytes);
    });
  }
  tile.Store(sums, sums_stride);
}

// AWQ. -----------------------------------------------------------------------------------------

using DU = hn::RebindToUnsigned<D>;
using VU = hn::Vec<DU>;

// The weights of one group of one output. (q - z) * s has at most 5 + 11 significant bits if s is
// F16, and is exact then; with any s it is rounded once.
class GroupWeights {
 public:
  GroupWeights() = default;
  HWY_INLINE GroupWeights(float zero, float scale) {
#if HWY_TARGET == HWY_AVX3
    table_ = hn::Mul(hn::Sub(hn::Iota(D(), 0.0f), hn::Set(D(), zero)), hn::Set(D(), scale));
#else
    zero_ = hn::Set(D(), zero);
    scale_ = hn::Set(D(), scale);
#endif
  }

  // Of nibble `nibble` of each word.
  HWY_INLINE V Of(const uint32_t* words, int nibble) const {
    return OfLowest(hn::ShiftRightSame(hn::LoadU(DU(), words), 4 * nibble));
  }
  template <int kNibble>
  HWY_INLINE V Of(const uint32_t* words) const {
    return OfLowest(hn::ShiftRight<4 * kNibble>(hn::LoadU(DU(), words)));
  }

 private:
  // Of the lowest nibble of each word.
  HWY_INLINE V OfLowest(VU words) const {
#if HWY_TARGET == HWY_AVX3
    // 16 values fit a vector. The instruction looks at no more than the lowest nibble, and spares
    // the And that hn::TableLookupLanes would want before it.
    return V{_mm512_permutexvar_ps(words.raw, table_.raw)};
#else
    const hn::RebindToSigned<D> di;
    const auto q = hn::BitCast(di, hn::And(words, hn::Set(DU(), 15)));
    return hn::Mul(hn::Sub(hn::ConvertTo(D(), q), zero_), scale_);
#endif
  }

#if HWY_TARGET == HWY_AVX3
  V table_;
#else
  V zero_;
  V scale_;
#endif
};

template <WeightFormat kFormat>
HWY_INLINE void ConvertScales(const uint8_t* from, size_t count, float* scales) {
  for (size_t g = 0; g < count; g += kLanes) {
    Store16(LoadWeights16<kFormat>(from + g * kWeightBytes<kFormat>), scales + g);
  }
}

// Scales and zeros of one output's groups as float32. Writes up to 15 more.
HWY_NOINLINE void LoadGroups(const AwqBlocks& awq, size_t output, float* HWY_RESTRICT scales,
                             float* HWY_RESTRICT zeros) {
  const size_t groups = static_cast<size_t>(awq.groups);
  const size_t at = output * groups;
  const uint8_t* from = reinterpret_cast<const uint8_t*>(awq.scales.data());
  switch (awq.scale_format) {
    case WeightFormat::kF16:
      ConvertScales<WeightFormat::kF16>(from + at * 2, groups, scales);
      break;
    case WeightFormat::kBf16:
      ConvertScales<WeightFormat::kBf16>(from + at * 2, groups, scales);
      break;
    default:
      ConvertScales<WeightFormat::kF32>(from + at * 4, groups, scales);
      break;
  }
  for (size_t g = 0; g < groups; ++g) zeros[g] = static_cast<float>(awq.zeros[at + g]);
}

// Calls body.operator()<n>() for n = 0 ... 7.
template <typename Body, int... kNibble>
HWY_INLINE void ForEachNibble(const Body& body, std::integer_sequence<int, kNibble...>) {
  (body.template operator()<kNibble>(), ...);
}

// As DenseTile. `in_task`: the output's index in the task, whose scales are in `scratch`.
template <size_t kRows>
HWY_NOINLINE void AwqTile(const Linear& weights, size_t output, size_t in_task,
                          const TileInputs& inputs, const MatMulScratch& scratch, bool zero,
                          float* HWY_RESTRICT sums, size_t sums_stride) {
  const AwqBlocks& awq = weights.awq;
  const size_t group_size = static_cast<size_t>(awq.group_size);
  const size_t groups_stride = static_cast<size_t>(awq.groups) + kLanes;
  const uint32_t* columns[kTileColumns];
  const float* scales[kTileColumns];
  const float* zeros[kTileColumns];
  for (size_t c = 0; c < kTileColumns; ++c) {
    const size_t beyond = output + c - HWY_MIN(output + c, static_cast<size_t>(weights.out) - 1);
    columns[c] = awq.words.get() +
                 (output + c - beyond) * static_cast<size_t>(awq.blocks) * AwqBlocks::kWords;
    scales[c] = scratch.scales + (in_task + c - beyond) * groups_stride;
    zeros[c] = scratch.zeros + (in_task + c - beyond) * groups_stride;
  }
  Sums<kRows> tile;
  tile.Load(zero, sums, sums_stride);
  GroupWeights group[kTileColumns];
  for (size_t k = inputs.first; k < inputs.last;) {
    // To the end of the block or of the group.
    const size_t g = k / group_size;
    HWY_UNROLL(6)
    for (size_t c = 0; c < kTileColumns; ++c) group[c] = GroupWeights(zeros[c][g], scales[c][g]);
    const size_t block = k / AwqBlocks::kInputs;
    const size_t words = block * AwqBlocks::kWords;
    const size_t end =
        HWY_MIN(inputs.last, HWY_MIN((block + 1) * AwqBlocks::kInputs, (g + 1) * group_size));
    if (end - k == AwqBlocks::kInputs) {
      ForEachNibble(
          [&]<int kNibble>() {
            tile.AddProducts(
                inputs.rows + k + kNibble * kLanes, inputs.stride, [&](size_t c, size_t i) {
                  return group[c].template Of<kNibble>(columns[c] + words + i * kVector);
                });
          },
          std::make_integer_sequence<int, 8>());
      k = end;
      continue;
    }
    int nibble = static_cast<int>(k % AwqBlocks::kInputs / kLanes);
    for (; k < end; k += kLanes, ++nibble) {
      tile.AddProducts(inputs.rows + k, inputs.stride, [&](size_t c, size_t i) {
        return group[c].Of(columns[c] + words + i * kVector, nibble);
      });
    }
  }
  tile.Store(sums, sums_stride);
}

// Inputs [first, last) of `outputs` outputs from `output` on, as float32, to scratch.panel. `first`
// is a multiple of a block.
HWY_NOINLINE void ConvertPanel(const Linear& weights, size_t output, size_t outputs, size_t first,
                               size_t last, const MatMulScratch& scratch) {
  const AwqBlocks& awq = weights.awq;
  const size_t group_size = static_cast<size_t>(awq.group_size);
  const size_t groups_stride = static_cast<size_t>(awq.groups) + kLanes;
  for (size_t n = 0; n < outputs; ++n) {
    const uint32_t* words = awq.words.get() + ((output + n) * static_cast<size_t>(awq.blocks) +
                                               first / AwqBlocks::kInputs) *
                                                  AwqBlocks::kWords;
    float* HWY_RESTRICT panel = scratch.panel + n * kPanelInputs;
    for (size_t k = first; k < last; words += AwqBlocks::kWords) {
      const size_t block_end = HWY_MIN(last, k + AwqBlocks::kInputs);
      int nibble = 0;
      while (k < block_end) {  // group by group
        const size_t g = k / group_size;
        const size_t end = HWY_MIN(block_end, (g + 1) * group_size);
        const GroupWeights group(scratch.zeros[n * groups_stride + g],
                                 scratch.scales[n * groups_stride + g]);
        if (end - k == AwqBlocks::kInputs) {
          ForEachNibble(
              [&]<int kNibble>() {
                HWY_UNROLL(4)
                for (size_t i = 0; i < kVectors; ++i) {
                  hn::StoreU(group.Of<kNibble>(words + i * kVector), D(),
                             panel + kNibble * kLanes + i * kVector);
                }
              },
              std::make_integer_sequence<int, 8>());
          panel += AwqBlocks::kInputs;
          k = end;
          continue;
        }
        for (; k < end; k += kLanes, panel += kLanes, ++nibble) {
          for (size_t i = 0; i < kVectors; ++i) {
            hn::StoreU(group.Of(words + i * kVector, nibble), D(), panel + i * kVector);
          }
        }
      }
    }
  }
}

// Parts. ---------------------------------------------------------------------------------------

// Where a tile's weights are.
struct TileWeights {
  const Linear* linear;
  size_t output;   // the tile's first
  size_t in_task;  // the same, from the task's first on
  bool panel;      // in scratch.panel, whose first input is inputs.first
};

template <size_t kRows>
HWY_INLINE void ComputeTile(const TileWeights& weights, const TileInputs& inputs,
                            const MatMulScratch& scratch, bool zero, float* sums, size_t stride) {
  const Linear& linear = *weights.linear;
  const uint8_t* dense = reinterpret_cast<const uint8_t*>(linear.dense);
  const size_t in = static_cast<size_t>(linear.in);
  const size_t last = static_cast<size_t>(linear.out) - 1;
  if (weights.panel) {
    const TileInputs in_panel = {.rows = inputs.rows + inputs.first,
                                 .stride = inputs.stride,
                                 .first = 0,
                                 .last = inputs.last - inputs.first};
    return DenseTile<WeightFormat::kF32, kRows>(reinterpret_cast<const uint8_t*>(scratch.panel),
                                                kPanelInputs, weights.in_task, kTaskOutputs - 1,
                                                in_panel, zero, sums, stride);
  }
  switch (linear.format) {
    case WeightFormat::kBf16:
      return DenseTile<WeightFormat::kBf16, kRows>(dense, in, weights.output, last, inputs, zero,
                                                   sums, stride);
    case WeightFormat::kF16:
      return DenseTile<WeightFormat::kF16, kRows>(dense, in, weights.output, last, inputs, zero,
                                                  sums, stride);
    case WeightFormat::kF32:
      return DenseTile<WeightFormat::kF32, kRows>(dense, in, weights.output, last, inputs, zero,
                                                  sums, stride);
    case WeightFormat::kAwq:
      return AwqTile<kRows>(linear, weights.output, weights.in_task, inputs, scratch, zero, sums,
                            stride);
  }
}

HWY_NOINLINE void TileOfRows(size_t rows, const TileWeights& weights, const TileInputs& inputs,
                             const MatMulScratch& scratch, bool zero, float* sums, size_t stride) {
  switch (rows) {
    case 1:
      return ComputeTile<1>(weights, inputs, scratch, zero, sums, stride);
    case 2:
      return ComputeTile<2>(weights, inputs, scratch, zero, sums, stride);
#if HWY_MAX_BYTES == 64
    case 3:
      return ComputeTile<3>(weights, inputs, scratch, zero, sums, stride);
    default:
      return ComputeTile<4>(weights, inputs, scratch, zero, sums, stride);
#endif
  }
}

// The end of `count` sums: lanes, bias, and what was there before. Reads the lanes of up to three
// more.
HWY_INLINE void WriteOutputs(const Product& product, size_t row, size_t first, size_t count,
                             const float* HWY_RESTRICT sums) {
  const std::vector<float>& bias = product.weights->bias;
  float* output = product.output + row * static_cast<size_t>(product.output_stride) + first;
  for (size_t n = 0; n < count; n += 4) {
    float sum[4];
    SumOfLanes4(sums + n * kLanes, kLanes, sum);
    for (size_t i = 0; i < HWY_MIN(size_t{4}, count - n); ++i) {
      const float value = bias.empty() ? sum[i] : sum[i] + bias[first + n + i];
      output[n + i] = product.add ? output[n + i] + value : value;
    }
  }
}

void Compute(const ProductPart& part, const MatMulScratch& scratch) {
  const Product& product = *part.product;
  const Linear& weights = *product.weights;
  const size_t in = static_cast<size_t>(weights.in);
  const size_t first_output = static_cast<size_t>(part.first_output);
  const size_t outputs = static_cast<size_t>(part.last_output - part.first_output);
  constexpr size_t kSumsStride = kTaskOutputs * kLanes;
  if (weights.format == WeightFormat::kAwq) {
    const size_t stride = static_cast<size_t>(weights.awq.groups) + kLanes;
    for (size_t n = 0; n < outputs; ++n) {
      LoadGroups(weights.awq, first_output + n, scratch.scales + n * stride,
                 scratch.zeros + n * stride);
    }
  }
  for (size_t row = part.first_row; row < static_cast<size_t>(part.last_row); row += kBlockRows) {
    const size_t rows = HWY_MIN(size_t{kBlockRows}, static_cast<size_t>(part.last_row) - row);
    const size_t tiles = (rows + kTileRows - 1) / kTileRows;
    const bool panel = weights.format == WeightFormat::kAwq && rows >= size_t{kPanelRows};
    // One tile uses no weight twice: then each output's are read to the end.
    const size_t block = panel ? kPanelInputs : tiles == 1 ? in : kBlockInputs;
    for (size_t k = 0; k < in; k += block) {
      if (panel) {
        ConvertPanel(weights, first_output, outputs, k, HWY_MIN(in, k + block), scratch);
      }
      for (size_t tile = 0; tile < tiles; ++tile) {
        const size_t r0 = rows * tile / tiles;  // equally high tiles
        const size_t r1 = rows * (tile + 1) / tiles;
        const size_t stride = static_cast<size_t>(product.input_stride);
        const TileInputs inputs = {.rows = product.input + (row + r0) * stride,
                                   .stride = stride,
                                   .first = k,
                                   .last = HWY_MIN(in, k + block)};
        for (size_t n = 0; n < outputs; n += kTileColumns) {
          TileOfRows(r1 - r0,
                     {.linear = &weights, .output = first_output + n, .in_task = n, .panel = panel},
                     inputs, scratch, k == 0, scratch.sums + r0 * kSumsStride + n * kLanes,
                     kSumsStride);
        }
        if (k + block < in) continue;
        for (size_t r = r0; r < r1; ++r) {
          WriteOutputs(product, row + r, first_output, outputs, scratch.sums + r * kSumsStride);
        }
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fabricast
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fabricast {

HWY_EXPORT(Compute);

MatMul::MatMul(ThreadPool* pool) : pool_(pool), scratch_(pool->threads()) {}

void MatMul::Run(absl::Span<const Product> products) {
  first_task_.clear();
  int64_t tasks = 0;
  int64_t scale_floats = 1;
  for (const Product& product : products) {
    const Linear& weights = *product.weights;
    FABRICAST_CHECK(product.input_stride >= RoundUpToLanes(weights.in))
        << "input_stride=" << product.input_stride << " in=" << weights.in;
    first_task_.push_back(tasks);
    tasks += (weights.out + kTaskOutputs - 1) / kTaskOutputs *
             ((product.rows + kTaskRows - 1) / kTaskRows);
    if (weights.format == WeightFormat::kAwq) {
      scale_floats = std::max(scale_floats, kTaskOutputs * (weights.awq.groups + kLanes));
    }
  }
  if (tasks == 0) return;
  if (scale_floats > scale_floats_) {
    scale_floats_ = scale_floats;
    for (AlignedFloats& scratch : scratch_) {
      scratch = AllocateFloats(kSumFloats + kPanelFloats + 2 * scale_floats);
    }
  }

  const auto compute = HWY_DYNAMIC_DISPATCH(Compute);
  pool_->Run(tasks, [&](int64_t task, int thread) {
    const size_t index =
        std::upper_bound(first_task_.begin(), first_task_.end(), task) - first_task_.begin() - 1;
    const Product& product = products[index];
    const int64_t row_parts = (product.rows + kTaskRows - 1) / kTaskRows;
    const int64_t in_product = task - first_task_[index];
    const int64_t first_output = in_product / row_parts * kTaskOutputs;
    const int64_t row_part = in_product % row_parts;
    float* scratch = scratch_[thread].get();
    compute({.product = &product,
             .first_output = first_output,
             .last_output = std::min(product.weights->out, first_output + kTaskOutputs),
             .first_row = product.rows * row_part / row_parts,
             .last_row = product.rows * (row_part + 1) / row_parts},
            {.sums = scratch,
             .panel = scratch + kSumFloats,
             .scales = scratch + kSumFloats + kPanelFloats,
             .zeros = scratch + kSumFloats + kPanelFloats + scale_floats_});
  });
}

}  // namespace fabricast
#endif  // HWY_ONCE
