// Needs a GPU: tools/gpu_tests runs it.

#include "kernels/elementwise/elementwise.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kernels/elementwise/activations_reference.h"
#include "kernels/elementwise/elementwise_reference.h"
#include "kernels/timing/device_array.h"

namespace fabricast {
namespace {

// Relative, of rounding to 8 and 11 bits of significand.
constexpr double kBf16Rounding = 1. / 256, kF16Rounding = 1. / 2048;
// Half the distance of FP16's subnormals.
constexpr double kF16Smallest = 1. / (1 << 25);
// SwiGLU's gates of which e^-gate comes near FP32's limit give 0.
constexpr double kF32Smallest = 1e-30;
// Relative, of a few dozen FP32 operations on numbers of one sign (u = 2^-24), and of __expf, 2
// + 1.2 |x| ulp, at gates of up to 30.
constexpr double kF32Error = 64. / (1 << 24);

// Poisoned memory between two guard zones, which Values checks.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t size) : size_(size) {
    absl::StatusOr<DeviceArray<char>> bytes =
        DeviceArray<char>::Allocate(2 * kGuard + size * int64_t{sizeof(T)});
    EXPECT_TRUE(bytes.ok()) << bytes.status();
    bytes_ = *std::move(bytes);
    EXPECT_EQ(bytes_.FillBytes(0xff), absl::OkStatus());
  }
  explicit Guarded(const std::vector<T>& values) : Guarded(static_cast<int64_t>(values.size())) {
    EXPECT_EQ(cudaMemcpy(get(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }

  T* get() const { return reinterpret_cast<T*>(bytes_.get() + kGuard); }

  std::vector<T> Values() const {
    const absl::StatusOr<std::vector<char>> all = bytes_.ToHost();
    EXPECT_TRUE(all.ok()) << all.status();
    const auto end = all->end() - kGuard;
    const auto is_poison = [](char byte) { return byte == '\xff'; };
    EXPECT_TRUE(std::all_of(all->begin(), all->begin() + kGuard, is_poison)) << "written before";
    EXPECT_TRUE(std::all_of(end, all->end(), is_poison)) << "written beyond the end";
    std::vector<T> values(static_cast<size_t>(size_));
    std::memcpy(values.data(), all->data() + kGuard, values.size() * sizeof(T));
    return values;
  }

 private:
  static constexpr int64_t kGuard = 4096;
  int64_t size_;
  DeviceArray<char> bytes_;
};

float FloatOf(uint16_t bf16) { return static_cast<float>(DoubleOfBf16(bf16)); }
uint16_t Bf16Of(float value) {  // To nearest even; no NaN.
  uint32_t word;
  std::memcpy(&word, &value, sizeof(word));
  return static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}

  // Normal numbers; rows of `length` differ in magnitude by up to 2^12.
  std::vector<float> Rows(int64_t rows, int64_t length) {
    std::vector<float> values(static_cast<size_t>(rows * length));
    for (size_t i = 0; i < values.size(); ++i) {
      const int64_t row = static_cast<int64_t>(i) / length;
      values[i] = std::ldexp(normal_(engine_), static_cast<int>(row * 5 % 13) - 6);
    }
    return values;
  }
  std::vector<uint16_t> Bf16Rows(int64_t rows, int64_t length) {
    std::vector<uint16_t> bits;
    for (const float value : Rows(rows, length)) bits.push_back(Bf16Of(value));
    return bits;
  }
  int32_t Below(int32_t end) { return std::uniform_int_distribution<int32_t>(0, end - 1)(engine_); }
  template <typename T>
  void Shuffle(std::vector<T>& values) {
    std::shuffle(values.begin(), values.end(), engine_);
  }

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

std::string NameOf(const ActivationLayout& layout) {
  constexpr const char* kNames[] = {"Bf16Rows", "F16Rows", "Mma", "Wgmma"};
  return absl::StrFormat("%s, %d tokens, %d inputs", kNames[static_cast<int>(layout.format)],
                         layout.tokens, layout.inputs);
}

// Poisoned Activations and what a kernel made of them.
class Output {
 public:
  explicit Output(const ActivationLayout& layout)
      : layout_(layout), data_(layout.bytes()), scale_(layout.packed() ? layout.tokens : 0) {}

  Activations activations() const { return {layout_, data_.get(), scale_.get()}; }

  std::vector<char> Bytes() const { return data_.Values(); }

  // `wanted` [tokens][inputs], within `computing` relative error beside the format's rounding.
  void Expect(const std::vector<double>& wanted, double computing) const {
    SCOPED_TRACE(NameOf(layout_));
    const std::vector<char> data = data_.Values();
    const std::vector<float> scale = scale_.Values();
    const ActivationsCopy got = {layout_, data, scale};
    if (layout_.packed()) ExpectScales(wanted, scale);
    const bool bf16 = layout_.format == ActivationFormat::kBf16Rows;
    int wrong = 0;
    for (int slot = 0; slot < got.slots_with_values(); ++slot) {
      const bool is_token = slot < layout_.tokens;
      const double of_slot =
          layout_.packed() && is_token ? double{scale[static_cast<size_t>(slot)]} : 1;
      const double smallest = bf16 ? kF32Smallest : kF16Smallest * of_slot;
      for (int64_t k = 0; k < got.inputs_with_values(); ++k) {
        const bool is_value = is_token && k < layout_.inputs;
        const double want = is_value ? wanted[static_cast<size_t>(slot * layout_.inputs + k)] : 0;
        const double tolerance =
            is_value
                ? std::abs(want) * (computing + (bf16 ? kBf16Rounding : kF16Rounding)) + smallest
                : 0;
        const double value = got.value(slot, k);
        if (std::abs(value - want) <= tolerance || ++wrong > 4) continue;
        ADD_FAILURE() << "slot " << slot << ", input " << k << ": " << value << ", not " << want
                      << " +- " << tolerance;
      }
    }
    EXPECT_EQ(wrong, 0);
    if (layout_.format == ActivationFormat::kMma) ExpectSums(got);
  }

 private:
  // The largest of a row is stored in [2^14, 2^15), but where the kernel's rounding crosses a
  // power.
  void ExpectScales(const std::vector<double>& wanted, const std::vector<float>& scale) const {
    for (int token = 0; token < layout_.tokens; ++token) {
      double largest = 0;
      for (int64_t k = 0; k < layout_.inputs; ++k) {
        largest =
            std::max(largest, std::abs(wanted[static_cast<size_t>(token * layout_.inputs + k)]));
      }
      const double of_token = scale[static_cast<size_t>(token)];
      int exponent;
      EXPECT_EQ(std::frexp(of_token, &exponent), 0.5) << "no power of two: token " << token;
      if (largest == 0) {
        EXPECT_EQ(of_token, 1) << token;
        continue;
      }
      EXPECT_GE(largest / of_token, (1 << 14) * (1 - kF32Error)) << "token " << token;
      EXPECT_LT(largest / of_token, (1 << 15) * (1 + kF32Error)) << "token " << token;
    }
  }

  // An FP32 sum of 128 in a tree 8 deep, and the last operations.
  void ExpectSums(const ActivationsCopy& got) const {
    constexpr double kTolerance = 16. / (1 << 24);
    int wrong = 0;
    for (int slot = 0; slot < layout_.slots(); ++slot) {
      for (int64_t group = 0; group < layout_.groups(); ++group) {
        double biased = 0, plain = 0, magnitude = 0;
        for (int64_t k = group * 128; slot < layout_.rows() && k < (group + 1) * 128; ++k) {
          const double x = got.stored(slot, k), bias = k % 4 < 2 ? 1024 : 64;
          biased -= bias * x;
          plain -= (1 << 24) * x;
          magnitude += std::abs(x);
        }
        const double first = got.sum(slot, group, 0), second = got.sum(slot, group, 1);
        if (std::abs(first - biased) <= kTolerance * 1024 * magnitude &&
            std::abs(second - plain) <= kTolerance * (1 << 24) * magnitude) {
          continue;
        }
        if (++wrong > 4) continue;
        ADD_FAILURE() << "sums of slot " << slot << ", group " << group << ": " << first << ", "
                      << second << ", not " << biased << ", " << plain;
      }
    }
    EXPECT_EQ(wrong, 0);
  }

  ActivationLayout layout_;
  Guarded<char> data_;
  Guarded<float> scale_;
};

// Every format, with every number of rows that it is for.
void ForLayouts(const std::vector<int>& rows, const std::vector<int64_t>& inputs,
                const std::function<void(const ActivationLayout&)>& test) {
  for (const ActivationFormat format : {ActivationFormat::kBf16Rows, ActivationFormat::kF16Rows,
                                        ActivationFormat::kMma, ActivationFormat::kWgmma}) {
    for (const int tokens : rows) {
      if (format == ActivationFormat::kMma && tokens > 64) continue;
      for (const int64_t length : inputs) test({format, tokens, length});
    }
  }
}

const std::vector<int> kRows = {1, 3, 8, 13, 16, 64, 200};

void ExpectDone(const absl::Status& launched) {
  ASSERT_EQ(launched, absl::OkStatus());
  ASSERT_EQ(ToStatus(cudaDeviceSynchronize(), "the kernel"), absl::OkStatus());
}

class NormInputs {
 public:
  NormInputs(int64_t rows, int64_t hidden)
      : hidden_(hidden),
        values_(Random(1).Rows(rows, hidden)),
        gains_(Random(2).Rows(1, hidden)),
        h_(values_),
        gain_(gains_) {}

  static constexpr float kEpsilon = 1e-5F;
  const float* h() const { return h_.get(); }
  const float* gain() const { return gain_.get(); }

  void AppendWanted(int64_t row, std::vector<double>& wanted) const {
    const auto begin = values_.begin() + row * hidden_;
    const std::vector<double> h(begin, begin + hidden_);
    const std::vector<double> result = RmsNormReference(h, gains_, kEpsilon);
    wanted.insert(wanted.end(), result.begin(), result.end());
  }

 private:
  int64_t hidden_;
  std::vector<float> values_, gains_;
  Guarded<float> h_, gain_;
};

TEST(RmsNormTest, RowsInEveryFormatAreTheReferences) {
  for (const int64_t hidden : {64, 98, 100, 101, 384, 4096, 5120, 16384}) {
    const NormInputs inputs(kRows.back(), hidden);
    std::vector<double> wanted;
    for (int row = 0; row < kRows.back(); ++row) inputs.AppendWanted(row, wanted);
    ForLayouts(kRows, {hidden}, [&](const ActivationLayout& layout) {
      const Output output(layout);
      ExpectDone(RmsNorm(inputs.h(), nullptr, inputs.gain(), NormInputs::kEpsilon,
                         output.activations(), {}));
      output.Expect(wanted, kF32Error);
    });
  }
}

TEST(RmsNormTest, RowsLongerThanRegistersHoldAreTheReferences) {
  // 8 blocks x 16 warps x 4 groups x 128 = 65,536.
  ForLayouts({1, 3}, {70'004}, [&](const ActivationLayout& layout) {
    const NormInputs inputs(layout.tokens, layout.inputs);
    std::vector<double> wanted;
    for (int row = 0; row < layout.tokens; ++row) inputs.AppendWanted(row, wanted);
    const Output output(layout);
    ExpectDone(RmsNorm(inputs.h(), nullptr, inputs.gain(), NormInputs::kEpsilon,
                       output.activations(), {}));
    output.Expect(wanted, kF32Error);
  });
}

TEST(RmsNormTest, ChosenRowsAreNormalisedInTheirOrder) {
  const std::vector<int32_t> rows = {4, 0, 4, 6, 1};
  const Guarded<int32_t> source_rows(rows);
  ForLayouts({static_cast<int>(rows.size())}, {384, 4096}, [&](const ActivationLayout& layout) {
    const NormInputs inputs(7, layout.inputs);
    std::vector<double> wanted;
    for (const int32_t row : rows) inputs.AppendWanted(row, wanted);
    const Output output(layout);
    ExpectDone(RmsNorm(inputs.h(), source_rows.get(), inputs.gain(), NormInputs::kEpsilon,
                       output.activations(), {}));
    output.Expect(wanted, kF32Error);
  });
}

TEST(RmsNormTest, RowsResultDoesNotDependOnHowManyThereAre) {
  for (const int64_t hidden : {4096, 8192, 16384}) {
    const NormInputs inputs(200, hidden);
    std::vector<std::vector<char>> results;
    for (const int tokens : {1, 2, 5, 16, 33, 64, 200}) {
      const Output output({ActivationFormat::kBf16Rows, tokens, hidden});
      ExpectDone(RmsNorm(inputs.h(), nullptr, inputs.gain(), NormInputs::kEpsilon,
                         output.activations(), {}));
      results.push_back(output.Bytes());
      EXPECT_TRUE(
          std::equal(results.front().begin(), results.front().end(), results.back().begin()))
          << tokens << " tokens of " << hidden;
    }
  }
}

TEST(RmsNormTest, RowThatIsNotFiniteSpoilsNoOther) {
  constexpr int64_t kHidden = 384;
  ForLayouts({3}, {kHidden}, [&](const ActivationLayout& layout) {
    SCOPED_TRACE(NameOf(layout));
    std::vector<float> values = Random(1).Rows(3, kHidden);
    values[kHidden + 7] = std::numeric_limits<float>::quiet_NaN();
    const Guarded<float> h(values), gain(std::vector<float>(kHidden, 1));
    const Output output(layout);
    ExpectDone(RmsNorm(h.get(), nullptr, gain.get(), 0, output.activations(), {}));
    const std::vector<char> data = output.Bytes();
    std::vector<float> scale(3, 1);
    if (layout.packed()) {
      ASSERT_EQ(
          cudaMemcpy(scale.data(), output.activations().token_scale, 12, cudaMemcpyDeviceToHost),
          cudaSuccess);
    }
    const ActivationsCopy got = {layout, data, scale};
    EXPECT_EQ(scale[1], 1);
    for (int64_t k = 0; k < kHidden; ++k) {
      EXPECT_TRUE(std::isnan(got.value(1, k))) << k;
      EXPECT_TRUE(std::isfinite(got.value(0, k)) && std::isfinite(got.value(2, k))) << k;
    }
  });
}

TEST(RmsNormTest, RowOfZerosIsZero) {
  ForLayouts({2}, {384}, [&](const ActivationLayout& layout) {
    const Guarded<float> h(std::vector<float>(2 * 384)), gain(std::vector<float>(384, 1));
    const Output output(layout);
    ExpectDone(
        RmsNorm(h.get(), nullptr, gain.get(), NormInputs::kEpsilon, output.activations(), {}));
    output.Expect(std::vector<double>(2 * 384), 0);
  });
}

void TestSwiGlu(const ActivationLayout& layout, int64_t extra_stride) {
  const int64_t ffn = layout.inputs, stride = 2 * ffn + extra_stride;
  const std::vector<uint16_t> values = Random(3).Bf16Rows(layout.tokens, stride);
  const Guarded<uint16_t> gate_up(values);
  std::vector<double> wanted;
  for (int64_t row = 0; row < layout.tokens; ++row) {
    for (int64_t i = 0; i < ffn; ++i) {
      wanted.push_back(
          SwiGluReference(DoubleOfBf16(values[static_cast<size_t>(row * stride + i)]),
                          DoubleOfBf16(values[static_cast<size_t>(row * stride + ffn + i)])));
    }
  }
  const Output output(layout);
  ExpectDone(SwiGlu(gate_up.get(), stride, output.activations(), {}));
  output.Expect(wanted, 16 * kF32Error);
}

TEST(SwiGluTest, RowsInEveryFormatAreTheReferences) {
  ForLayouts(kRows, {64, 100, 101, 192, 14336},
             [](const ActivationLayout& layout) { TestSwiGlu(layout, 0); });
}

TEST(SwiGluTest, LongRowsAreTheReferences) {
  ForLayouts({1, 3, 16}, {53'248, 70'004},
             [](const ActivationLayout& layout) { TestSwiGlu(layout, 0); });
}

TEST(SwiGluTest, RowsMayLieApart) {
  ForLayouts({3}, {192}, [](const ActivationLayout& layout) {
    TestSwiGlu(layout, 64);
    TestSwiGlu(layout, 5);
  });
}

void TestPackRows(const ActivationLayout& layout, int64_t stride) {
  const std::vector<uint16_t> values = Random(4).Bf16Rows(layout.tokens, stride);
  const Guarded<uint16_t> rows(values);
  std::vector<double> wanted;
  for (int64_t row = 0; row < layout.tokens; ++row) {
    for (int64_t i = 0; i < layout.inputs; ++i) {
      wanted.push_back(DoubleOfBf16(values[static_cast<size_t>(row * stride + i)]));
    }
  }
  const Output output(layout);
  ExpectDone(PackRows(rows.get(), stride, output.activations(), {}));
  output.Expect(wanted, 0);
}

TEST(PackRowsTest, RowsInEveryFormatAreTheReferences) {
  ForLayouts(kRows, {64, 100, 101, 384, 16384},
             [](const ActivationLayout& layout) { TestPackRows(layout, layout.inputs); });
}

TEST(PackRowsTest, RowsMayLieApart) {
  ForLayouts({1, 3, 16}, {384}, [](const ActivationLayout& layout) {
    TestPackRows(layout, layout.inputs + 64);
    TestPackRows(layout, layout.inputs + 1);
  });
}

TEST(PackRowsTest, TinyRowsAreScaledByWhatFloatsHold) {
  constexpr float kSmallest = 0x1p-130F;
  const std::vector<uint16_t> values(128, Bf16Of(kSmallest));
  const Guarded<uint16_t> rows(values);
  const ActivationLayout layout = {ActivationFormat::kWgmma, 1, 128};
  const Output output(layout);
  ExpectDone(PackRows(rows.get(), 128, output.activations(), {}));
  const std::vector<char> data = output.Bytes();
  float scale = 0;
  ASSERT_EQ(cudaMemcpy(&scale, output.activations().token_scale, 4, cudaMemcpyDeviceToHost),
            cudaSuccess);
  EXPECT_GE(scale, std::numeric_limits<float>::min());
  const ActivationsCopy got = {layout, data, absl::MakeConstSpan(&scale, 1)};
  EXPECT_EQ(got.value(0, 5), double{kSmallest});
}

struct RopeShape {
  int heads, kv_heads, head_dim;
};

void TestRope(const RopeShape& shape, int rows, bool bias, bool gains, int64_t extra_stride) {
  const auto [heads, kv_heads, head_dim] = shape;
  SCOPED_TRACE(absl::StrFormat("%d + 2 x %d heads of %d, %d rows, bias %d, gains %d, stride + %d",
                               heads, kv_heads, head_dim, rows, bias, gains, extra_stride));
  constexpr float kEpsilon = 1e-6F;
  const int all_heads = heads + 2 * kv_heads;
  const int64_t stride = int64_t{all_heads} * head_dim + extra_stride;
  Random random(5);
  const std::vector<uint16_t> before = random.Bf16Rows(rows, stride);
  const std::vector<float> biases = random.Rows(1, all_heads * head_dim);
  const std::vector<float> q_gains = random.Rows(1, head_dim), k_gains = random.Rows(1, head_dim);
  std::vector<float> frequencies;
  for (int i = 0; i < head_dim / 2; ++i) {
    frequencies.push_back(std::pow(500'000.F, -2.F * static_cast<float>(i) / head_dim));
  }
  std::vector<int32_t> positions, slots(static_cast<size_t>(rows) + 40);
  for (int row = 0; row < rows; ++row) positions.push_back(131'071 - random.Below(131'072) / 2 * 2);
  std::iota(slots.begin(), slots.end(), 0);
  random.Shuffle(slots);
  slots.resize(static_cast<size_t>(rows));
  if (rows > 2) slots[2] = -1;

  const Guarded<uint16_t> qkv(before);
  const Guarded<float> d_bias(biases), d_q(q_gains), d_k(k_gains), d_frequencies(frequencies);
  const Guarded<int32_t> d_positions(positions), d_slots(slots);
  KvCacheView cache = {nullptr, (rows + 40 + 15) / 16, kv_heads, head_dim};
  const Guarded<uint16_t> d_cache(cache.bytes() / 2);
  cache.data = d_cache.get();
  ExpectDone(RopeAndAppend({.qkv = qkv.get(),
                            .stride = stride,
                            .rows = rows,
                            .heads = heads,
                            .positions = d_positions.get(),
                            .cache_slots = d_slots.get(),
                            .frequencies = d_frequencies.get(),
                            .bias = bias ? d_bias.get() : nullptr,
                            .q_gain = gains ? d_q.get() : nullptr,
                            .k_gain = gains ? d_k.get() : nullptr,
                            .epsilon = kEpsilon,
                            .cache = cache},
                           {}));

  // What is not in these is as it was.
  std::vector<std::pair<double, double>> wanted_qkv, wanted_cache;  // {value, tolerance}
  for (const uint16_t bits : before) wanted_qkv.emplace_back(DoubleOfBf16(bits), 0);
  const double kUntouched = std::numeric_limits<double>::infinity();
  wanted_cache.resize(static_cast<size_t>(cache.bytes() / 2), {kUntouched, 0});
  for (int row = 0; row < rows; ++row) {
    for (int head = 0; head < all_heads; ++head) {
      const size_t begin = static_cast<size_t>(row * stride + head * head_dim);
      const bool is_query = head < heads, is_value = head >= heads + kv_heads;
      std::vector<double> x;
      for (int i = 0; i < head_dim; ++i) {
        x.push_back(DoubleOfBf16(before[begin + static_cast<size_t>(i)]) +
                    (bias ? double{biases[static_cast<size_t>(head * head_dim + i)]} : 0));
      }
      double rounding = bias ? kF32Error : 0;
      if (!is_value) {
        rounding = kF32Error;
        if (gains) x = RmsNormReference(x, is_query ? q_gains : k_gains, kEpsilon);
        x = RopeReference(x, positions[static_cast<size_t>(row)], frequencies);
      }
      double largest = 0;
      for (const double value : x) largest = std::max(largest, std::abs(value));
      const int32_t slot = slots[static_cast<size_t>(row)];
      for (int i = 0; i < head_dim; ++i) {
        const double value = x[static_cast<size_t>(i)];
        const std::pair<double, double> wanted = {
            value, std::abs(value) * (rounding == 0 ? 0 : kBf16Rounding) + rounding * largest};
        if (is_query) {
          wanted_qkv[begin + static_cast<size_t>(i)] = wanted;
        } else if (slot >= 0) {
          const int kv_head = head - heads - (is_value ? kv_heads : 0);
          wanted_cache[static_cast<size_t>(cache.tile(slot / 16, kv_head, is_value) +
                                           cache.in_tile(slot % 16, i))] = wanted;
        }
      }
    }
  }
  const auto expect = [&](const std::vector<uint16_t>& got, const char* name,
                          const std::vector<std::pair<double, double>>& wanted) {
    int wrong = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const auto [value, tolerance] = wanted[i];
      const double was = DoubleOfBf16(got[i]);
      if (value == kUntouched ? got[i] == 0xffff : std::abs(was - value) <= tolerance) continue;
      if (++wrong > 4) continue;
      ADD_FAILURE() << name << "[" << i << "]: " << was << ", not " << value << " +- " << tolerance;
    }
    EXPECT_EQ(wrong, 0);
  };
  expect(qkv.Values(), "qkv", wanted_qkv);
  expect(d_cache.Values(), "cache", wanted_cache);
}

TEST(RopeAndAppendTest, HeadsOfEverySizeAreTheReferences) {
  for (const RopeShape shape : {RopeShape{4, 1, 64}, RopeShape{5, 2, 128}, RopeShape{3, 3, 80},
                                RopeShape{2, 1, 100}, RopeShape{7, 1, 256}, RopeShape{1, 1, 2},
                                RopeShape{2, 2, 96}, RopeShape{3, 1, 16}, RopeShape{2, 1, 254}}) {
    for (const int rows : {1, 3, 16, 200}) {
      for (const bool bias : {false, true}) {
        for (const bool gains : {false, true}) TestRope(shape, rows, bias, gains, 0);
      }
    }
  }
}

TEST(RopeAndAppendTest, ManyHeadsAreTheReferences) {
  for (const int rows : {1, 3, 150}) TestRope({128, 8, 128}, rows, false, false, 0);
}

TEST(RopeAndAppendTest, RowsMayLieApart) {
  TestRope({5, 2, 128}, 3, true, true, 64);
  TestRope({5, 2, 128}, 3, true, true, 3);
}

TEST(RopeAndAppendTest, HeadsThatHaveNoPairsAreRefused) {
  RopeArguments arguments;
  arguments.rows = 1;
  for (const int head_dim : {0, 5, 258}) {
    arguments.cache.head_dim = head_dim;
    EXPECT_EQ(RopeAndAppend(arguments, {}).code(), absl::StatusCode::kUnimplemented) << head_dim;
  }
}

TEST(EmbedTest, RowsAreThoseOfTheTokens) {
  constexpr int kVocabulary = 11;
  const std::vector<int32_t> tokens = {3, 10, 0, 3, 7};
  const Guarded<int32_t> d_tokens(tokens);
  for (const int hidden : {64, 101, 384, 5120}) {
    const std::vector<float> values = Random(6).Rows(kVocabulary, hidden);
    std::vector<uint16_t> bf16, f16;
    for (size_t i = 0; i < values.size(); ++i) {
      bf16.push_back(Bf16Of(values[i]));
      // Any bits but those of infinities and NaNs.
      f16.push_back(static_cast<uint16_t>((i * 2654435761U >> 13 & 0x83ff) | (i % 31) << 10));
    }
    const Guarded<float> table(values);
    const Guarded<uint16_t> bf16_table(bf16), f16_table(f16);
    for (const ElementType type : {ElementType::kBf16, ElementType::kF16, ElementType::kF32}) {
      const void* const from = type == ElementType::kBf16  ? bf16_table.get()
                               : type == ElementType::kF16 ? static_cast<void*>(f16_table.get())
                                                           : table.get();
      const Guarded<float> h(static_cast<int64_t>(tokens.size()) * hidden);
      ExpectDone(
          Embed(from, type, d_tokens.get(), static_cast<int>(tokens.size()), hidden, h.get(), {}));
      const std::vector<float> got = h.Values();
      for (size_t i = 0; i < got.size(); ++i) {
        const size_t width = static_cast<size_t>(hidden);
        const size_t at = static_cast<size_t>(tokens[i / width]) * width + i % width;
        const double want = type == ElementType::kBf16  ? DoubleOfBf16(bf16[at])
                            : type == ElementType::kF16 ? DoubleOfF16(f16[at])
                                                        : double{values[at]};
        ASSERT_EQ(double{got[i]}, want) << "type " << static_cast<int>(type) << ", " << i;
      }
    }
  }
}

TEST(ConversionTest, EveryElementIsRoundedToNearestAndBack) {
  for (const int64_t count : {1, 7, 8, 9, 1000, 100'003}) {
    for (const int64_t offset : {0, 1}) {
      const std::vector<float> values = Random(7).Rows(1, count + offset);
      const Guarded<float> from(values), back(count + offset);
      const Guarded<uint16_t> bf16(count + offset);
      ExpectDone(ToBf16(from.get() + offset, count, bf16.get() + offset, {}));
      ExpectDone(FromBf16(bf16.get() + offset, count, back.get() + offset, {}));
      const std::vector<uint16_t> rounded = bf16.Values();
      const std::vector<float> again = back.Values();
      if (offset == 1) {
        EXPECT_EQ(rounded[0], 0xffff);
        EXPECT_TRUE(std::isnan(again[0]));
      }
      for (size_t i = static_cast<size_t>(offset); i < values.size(); ++i) {
        ASSERT_EQ(rounded[i], Bf16Of(values[i])) << i << " of " << count;
        ASSERT_EQ(again[i], FloatOf(rounded[i])) << i << " of " << count;
      }
    }
  }
}

TEST(FindNotFiniteTest, FirstBadRowIsFound) {
  constexpr int kChecked = 40;
  const auto first_bad = [](const std::vector<float>& values, int hidden) {
    const Guarded<float> h(values);
    const Guarded<int32_t> row(std::vector<int32_t>{std::numeric_limits<int32_t>::max()});
    EXPECT_EQ(FindNotFinite(h.get(), kChecked, hidden, row.get(), {}), absl::OkStatus());
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return row.Values()[0];
  };
  for (const int hidden : {64, 101, 384, 16384}) {
    std::vector<float> values = Random(8).Rows(kChecked, hidden);
    values[5] = std::numeric_limits<float>::max();
    EXPECT_EQ(first_bad(values, hidden), std::numeric_limits<int32_t>::max()) << hidden;
    const size_t width = static_cast<size_t>(hidden);
    values[39 * width + width - 1] = -std::numeric_limits<float>::infinity();
    EXPECT_EQ(first_bad(values, hidden), 39) << hidden;
    values[30 * width] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(first_bad(values, hidden), 30) << hidden;
    values[31 * width - 1] = std::numeric_limits<float>::infinity();
    values[17 * width + width / 2] = -std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(first_bad(values, hidden), 17) << hidden;
  }
}

TEST(OverlapTest, ChainOfOverlappingKernelsGivesWhatSeparateOnesGive) {
  constexpr int64_t kHidden = 16384;
  constexpr int kTokens = 3;
  const NormInputs inputs(kTokens, kHidden);
  std::vector<std::vector<float>> results;
  for (const bool overlap : {false, true}) {
    const Guarded<float> h(Random(1).Rows(kTokens, kHidden));
    const Output rows({ActivationFormat::kBf16Rows, kTokens, kHidden});
    const Output half({ActivationFormat::kBf16Rows, kTokens, kHidden / 2});
    const LaunchOptions options = {.overlap_previous = overlap};
    for (int i = 0; i < 200; ++i) {
      ASSERT_EQ(RmsNorm(h.get(), nullptr, inputs.gain(), 1e-5F, rows.activations(), options),
                absl::OkStatus());
      ASSERT_EQ(SwiGlu(rows.activations().data, kHidden, half.activations(), options),
                absl::OkStatus());
      ASSERT_EQ(FromBf16(half.activations().data, kTokens * kHidden / 2,
                         h.get() + i % 2 * kTokens * kHidden / 2, options),
                absl::OkStatus());
    }
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    results.push_back(h.Values());
  }
  EXPECT_TRUE(std::isfinite(results[0].front()) && std::isfinite(results[0].back()));
  EXPECT_EQ(std::memcmp(results[0].data(), results[1].data(), results[0].size() * 4), 0);
}

}  // namespace
}  // namespace fabricast
