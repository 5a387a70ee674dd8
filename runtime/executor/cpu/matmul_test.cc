#include "runtime/executor/cpu/matmul.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/executor/cpu/each_target.h"
#include "runtime/executor/cpu/test_weights.h"

namespace fabricast {
namespace {

FloatMatrix RandomMatrix(RandomNormal& random, int64_t rows, int64_t columns) {
  FloatMatrix matrix(columns);
  matrix.Resize(rows);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < columns; ++i) matrix.row(row)[i] = random();
  }
  return matrix;
}

FloatMatrix Multiply(MatMul& matmul, const Linear& linear, const FloatMatrix& input) {
  FloatMatrix output(linear.out);
  output.Resize(input.rows());
  matmul.Run({{.weights = &linear,
               .rows = input.rows(),
               .input = input.row(0),
               .input_stride = input.stride(),
               .output = output.row(0),
               .output_stride = output.stride()}});
  return output;
}

// The order that matmul.h promises, one operation after another.
float InOrder(const float* x, const float* w, int64_t count) {
  float lanes[16] = {};
  for (int64_t k = 0; k < (count + 15) / 16 * 16; ++k) {
    // Past the end zero is added to the lane, which changes only the sign of a zero.
    lanes[k % 16] = std::fma(k < count ? x[k] : 0.0f, k < count ? w[k] : 0.0f, lanes[k % 16]);
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

void ExpectProduct(ThreadPool& pool, const RandomLinear& random_linear, const FloatMatrix& input,
                   bool fuses) {
  const absl::StatusOr<Linear> linear = Linear::Load(random_linear.weights, nullptr, pool);
  ASSERT_TRUE(linear.ok()) << linear.status();
  MatMul matmul(&pool);
  const FloatMatrix output = Multiply(matmul, *linear, input);
  const int64_t in = linear->in;
  // Each lane rounds once a product (twice if it does not fuse), then four times; the bias once.
  // Unit roundoff 2^-24, second order within one more.
  const double roundings = (fuses ? 1.0 : 2.0) * static_cast<double>((in + 15) / 16) + 4 + 1 + 1;
  for (int64_t row = 0; row < input.rows(); ++row) {
    for (int64_t n = 0; n < linear->out; ++n) {
      const float* x = input.row(row);
      const float* w = random_linear.values.data() + n * in;
      const double bias = random_linear.bias.empty() ? 0.0 : random_linear.bias[n];
      double sum = bias;
      double size = std::abs(bias);
      for (int64_t k = 0; k < in; ++k) {
        sum += static_cast<double>(x[k]) * w[k];
        size += std::abs(static_cast<double>(x[k]) * w[k]);
      }
      const float actual = output.row(row)[n];
      ASSERT_NEAR(actual, sum, roundings * 0x1p-24 * size)
          << "row " << row << " output " << n << " of " << input.rows() << " x " << linear->out;
      if (!fuses) continue;
      const float dot = InOrder(x, w, in);
      ASSERT_EQ(actual, random_linear.bias.empty() ? dot : dot + random_linear.bias[n])
          << "row " << row << " output " << n << " of " << input.rows() << " x " << linear->out;
    }
    for (int64_t n = linear->out; n < RoundUpToLanes(linear->out); ++n) {
      ASSERT_EQ(output.row(row)[n], 0.0f) << "beyond the end, " << n;
    }
  }
}

TEST(MatMulTest, DenseWeightsOfAnyTypeAndShape) {
  ThreadPool pool(2);
  ForEachTarget([&](bool fuses) {
    for (const DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
      uint32_t seed = 1;
      for (const int64_t in : {1, 16, 17, 100, 513}) {
        for (const int64_t out : {1, 6, 65}) {
          for (const int64_t rows : {1, 3, 4, 13}) {
            RandomNormal random(seed++);
            TensorStore store;
            const RandomLinear linear =
                MakeDense(store, random, in, out, dtype, /*bias=*/in % 2 == 1);
            const FloatMatrix input = RandomMatrix(random, rows, in);
            ASSERT_NO_FATAL_FAILURE(ExpectProduct(pool, linear, input, fuses)) << "in " << in;
          }
        }
      }
    }
  });
}

TEST(MatMulTest, MoreInputsThanABlock) {
  ThreadPool pool(2);
  ForEachTarget([&](bool fuses) {
    RandomNormal random(3);
    TensorStore store;
    for (const RandomLinear& linear :
         {MakeDense(store, random, 4100, 7, DType::kBf16), MakeAwq(store, random, 4224, 16, 128)}) {
      for (const int64_t rows : {1, 7, 40}) {
        const FloatMatrix input = RandomMatrix(random, rows, linear.weights.in);
        ASSERT_NO_FATAL_FAILURE(ExpectProduct(pool, linear, input, fuses))
            << "in " << linear.weights.in;
      }
    }
  });
}

TEST(MatMulTest, AwqWeightsInGroupsOfAnySize) {
  ThreadPool pool(2);
  ForEachTarget([&](bool fuses) {
    uint32_t seed = 1;
    for (const DType scales : {DType::kF16, DType::kBf16, DType::kF32}) {
      for (const auto& [in, group] : std::vector<std::pair<int64_t, int64_t>>{
               {16, 16}, {128, 128}, {96, 32}, {640, 128}, {768, 256}, {480, 160}, {1152, 64}}) {
        for (const int64_t out : {8, 72}) {
          for (const int64_t rows : {1, 3, 4, 13}) {
            RandomNormal random(seed++);
            TensorStore store;
            const RandomLinear linear = MakeAwq(store, random, in, out, group, scales);
            const FloatMatrix input = RandomMatrix(random, rows, in);
            ASSERT_NO_FATAL_FAILURE(ExpectProduct(pool, linear, input, fuses))
                << "in " << in << " group " << group;
          }
        }
      }
    }
  });
}

// The value of each bit pattern: 65,536 outputs of one input, which is 1.
TEST(MatMulTest, WeightsAreConvertedExactly) {
  ForEachTarget([](bool) {
    ThreadPool pool(1);
    MatMul matmul(&pool);
    std::vector<uint16_t> bits(65536);
    for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
    for (const DType dtype : {DType::kBf16, DType::kF16}) {
      TensorStore store;
      LinearWeights weights;
      weights.in = 1;
      weights.out = 65536;
      weights.dense = store.Add("weight", dtype, {65536, 1}, bits.data());
      const absl::StatusOr<Linear> linear = Linear::Load(weights, nullptr, pool);
      ASSERT_TRUE(linear.ok());
      for (const int64_t rows : {1, 7}) {
        FloatMatrix input(1);
        input.Resize(rows);
        for (int64_t row = 0; row < rows; ++row) input.row(row)[0] = 1;
        const FloatMatrix output = Multiply(matmul, *linear, input);
        for (uint32_t i = 0; i < 65536; ++i) {
          const uint32_t sign = i >> 15;
          const int exponent =
              static_cast<int>(dtype == DType::kF16 ? (i >> 10) & 31 : (i >> 7) & 255);
          const uint32_t mantissa = dtype == DType::kF16 ? i & 1023 : i & 127;
          const int largest = dtype == DType::kF16 ? 31 : 255;
          const int scale = dtype == DType::kF16 ? 15 + 10 : 127 + 7;  // bias + mantissa bits
          const int ones = dtype == DType::kF16 ? 1024 : 128;
          const float actual = output.row(rows - 1)[i];
          if (exponent == largest) {
            ASSERT_EQ(std::isnan(actual), mantissa != 0) << i;
            if (mantissa == 0) {
              ASSERT_EQ(std::isinf(actual) && (actual < 0) == (sign != 0), true) << i;
            }
            continue;
          }
          const double magnitude =
              exponent == 0 ? std::ldexp(static_cast<double>(mantissa), 1 - scale)
                            : std::ldexp(static_cast<double>(mantissa) + ones, exponent - scale);
          ASSERT_EQ(actual, static_cast<float>(sign != 0 ? -magnitude : magnitude)) << i;
        }
      }
    }
  });
}

// Two tasks of rows, three blocks of inputs; one tile, whose inputs are not cut into blocks;
// several; AWQ's with and without a panel.
TEST(MatMulTest, ARowIsTheSameBitsAmongAnyOthersAndWithAnyThreads) {
  constexpr int64_t kIn = 4160;
  constexpr int64_t kOut = 72;
  RandomNormal random(7);
  TensorStore store;
  for (const RandomLinear& weights :
       {MakeDense(store, random, kIn, kOut, DType::kBf16),
        MakeDense(store, random, kIn, kOut, DType::kF16),
        MakeDense(store, random, kIn, kOut, DType::kF32), MakeAwq(store, random, kIn, kOut, 208),
        MakeAwq(store, random, 2304, kOut, 128)}) {
    const FloatMatrix input = RandomMatrix(random, 200, weights.weights.in);
    std::vector<uint32_t> expected;
    ForEachTarget([&](bool fuses) {
      if (!fuses) return;
      for (const int threads : {1, 3}) {
        ThreadPool pool(threads);
        MatMul matmul(&pool);
        const absl::StatusOr<Linear> linear = Linear::Load(weights.weights, nullptr, pool);
        ASSERT_TRUE(linear.ok());
        for (const int64_t rows : {200, 1, 2, 3, 4, 5, 6, 7, 96, 97}) {
          FloatMatrix some(linear->in);
          some.Resize(rows);
          // The last row of them is row 123.
          for (int64_t row = 0; row < rows; ++row) {
            const float* from = input.row((123 + 200 - (rows - 1) + row) % 200);
            std::copy(from, from + linear->in, some.row(row));
          }
          const FloatMatrix output = Multiply(matmul, *linear, some);
          std::vector<uint32_t> bits;
          for (int64_t n = 0; n < kOut; ++n) {
            bits.push_back(std::bit_cast<uint32_t>(output.row(rows - 1)[n]));
          }
          if (expected.empty()) expected = bits;
          ASSERT_EQ(bits, expected) << rows << " rows, " << threads << " threads";
        }
      }
    });
  }
}

TEST(MatMulTest, AddsToWhatIsThereIfAsked) {
  RandomNormal random(3);
  TensorStore store;
  ThreadPool pool(1);
  MatMul matmul(&pool);
  const RandomLinear weights = MakeDense(store, random, 40, 10, DType::kF32, /*bias=*/true);
  const absl::StatusOr<Linear> linear = Linear::Load(weights.weights, nullptr, pool);
  ASSERT_TRUE(linear.ok());
  for (const int64_t rows : {1, 9}) {
    const FloatMatrix input = RandomMatrix(random, rows, 40);
    const FloatMatrix product = Multiply(matmul, *linear, input);
    FloatMatrix sum(10);
    sum.Resize(rows);
    for (int64_t row = 0; row < rows; ++row) sum.row(row)[2] = 5;
    matmul.Run({{.weights = &*linear,
                 .rows = rows,
                 .input = input.row(0),
                 .input_stride = input.stride(),
                 .output = sum.row(0),
                 .output_stride = sum.stride(),
                 .add = true}});
    for (int64_t n = 0; n < 10; ++n) {
      EXPECT_EQ(sum.row(rows - 1)[n], (n == 2 ? 5.0f : 0.0f) + product.row(rows - 1)[n]);
    }
  }
}

TEST(MatMulTest, RunsProductsTogetherAndSkipsEmptyOnes) {
  RandomNormal random(3);
  TensorStore store;
  ThreadPool pool(2);
  MatMul matmul(&pool);
  const absl::StatusOr<Linear> a =
      Linear::Load(MakeDense(store, random, 32, 70, DType::kF32).weights, nullptr, pool);
  const absl::StatusOr<Linear> b =
      Linear::Load(MakeAwq(store, random, 128, 40, 128).weights, nullptr, pool);
  ASSERT_TRUE(a.ok() && b.ok());
  const FloatMatrix for_a = RandomMatrix(random, 3, 32);
  const FloatMatrix for_b = RandomMatrix(random, 20, 128);
  FloatMatrix of_a(70);
  of_a.Resize(3);
  FloatMatrix of_b(40);
  of_b.Resize(20);
  matmul.Run({{&*a, 3, for_a.row(0), for_a.stride(), of_a.row(0), of_a.stride()},
              {&*b, 0, for_b.row(0), for_b.stride(), of_b.row(0), of_b.stride()},
              {&*b, 20, for_b.row(0), for_b.stride(), of_b.row(0), of_b.stride()}});
  const FloatMatrix only_a = Multiply(matmul, *a, for_a);
  const FloatMatrix only_b = Multiply(matmul, *b, for_b);
  for (int64_t n = 0; n < 70; ++n) EXPECT_EQ(of_a.row(2)[n], only_a.row(2)[n]);
  for (int64_t n = 0; n < 40; ++n) EXPECT_EQ(of_b.row(19)[n], only_b.row(19)[n]);
}

TEST(LinearTest, NamesWhatItCannotCompute) {
  TensorStore store;
  ThreadPool pool(1);
  LinearWeights weights;
  weights.in = 4;
  weights.out = 2;
  const std::vector<int8_t> bytes(8);
  weights.dense = store.Add("a.weight", DType::kF8E4M3, {2, 4}, bytes.data());
  const absl::StatusOr<Linear> linear = Linear::Load(weights, nullptr, pool);
  EXPECT_EQ(linear.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(linear.status().message(),
            "a.weight: is F8_E4M3; the CPU executor computes with BF16, F16 and F32 weights and "
            "with AWQ's");

  RandomNormal random(1);
  const absl::StatusOr<Linear> awq =
      Linear::Load(MakeAwq(store, random, 24, 8, 8).weights, nullptr, pool);
  EXPECT_EQ(awq.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(awq.status().message(),
            "qweight: groups of 8 inputs; the CPU executor takes multiples of 16");
}

}  // namespace
}  // namespace fabricast
