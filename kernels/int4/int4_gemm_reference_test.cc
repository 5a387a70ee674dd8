#include "kernels/int4/int4_gemm_reference.h"

#include <vector>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

TEST(Int4GemmReferenceTest, SumsProductsOfDequantisedWeights) {
  PlainInt4 weights(2, 130);
  weights.scale(0, 0) = F16FromExact(0.5);
  weights.scale(0, 1) = F16FromExact(2);
  weights.zero(0, 0) = 8;
  weights.zero(0, 1) = 1;
  for (int64_t input = 0; input < 130; ++input) weights.quant(0, input) = 8;
  weights.quant(0, 3) = 15;
  std::vector<float> x(2 * 130);
  x[3] = 2;          // token 0: 2 x 0.5 (15 - 8)
  x[128] = 1;        //          1 x 2 (8 - 1)
  x[130 + 129] = 3;  // token 1: 3 x 2 (8 - 1)
  EXPECT_EQ(Int4GemmReference(weights, x, 2), (std::vector<double>{7 + 14, 0, 42, 0}));
}

}  // namespace
}  // namespace fabricast
