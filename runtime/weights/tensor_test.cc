#include "runtime/weights/tensor.h"

#include <array>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

TEST(TensorTest, NamesOfTypesTellHowManyBitsAnElementHas) {
  for (DType dtype : {DType::kU8, DType::kI8, DType::kF8E4M3, DType::kF8E5M2, DType::kI16,
                      DType::kU16, DType::kF16, DType::kBf16, DType::kI32, DType::kU32, DType::kF32,
                      DType::kI64, DType::kU64, DType::kF64}) {
    const absl::string_view name = DTypeName(dtype);
    const size_t digits = name.find_first_of("0123456789");
    EXPECT_EQ(std::stoi(std::string(name.substr(digits))), 8 * DTypeBytes(dtype)) << name;
  }
  EXPECT_EQ(DTypeName(DType::kBool), "BOOL");
  EXPECT_EQ(DTypeBytes(DType::kBool), 1);
}

TEST(TensorTest, ElementsAreTheProductOfTheShape) {
  const std::array<std::byte, 24> bytes = {};
  EXPECT_EQ((Tensor{"a", DType::kBf16, {3, 4}, bytes}.elements()), 12);
  EXPECT_EQ((Tensor{"a", DType::kF64, {3}, bytes}.elements()), 3);
  EXPECT_EQ((Tensor{"a", DType::kF64, {int64_t{1} << 62, 0, 8}, {}}.elements()), 0);
}

}  // namespace
}  // namespace fabricast
