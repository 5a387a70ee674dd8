#include "runtime/metrics/compute_time.h"

#include <google/protobuf/descriptor.h>

#include "gtest/gtest.h"

namespace fabricast {
namespace {

// Field i is 2^i, so that a sum tells which fields are in it.
ComputeTime PowersOfTwo() {
  ComputeTime time;
  const auto& type = *ComputeTime::descriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    time.GetReflection()->SetDouble(&time, type.field(i), 1 << i);
  }
  return time;
}

TEST(ComputeTimeTest, TheTotalHasEveryCauseOnce) {
  EXPECT_EQ(TotalSeconds(PowersOfTwo()), (1 << ComputeTime::descriptor()->field_count()) - 1);
  EXPECT_EQ(TotalSeconds(ComputeTime()), 0);
}

TEST(ComputeTimeTest, SumsAreCauseByCause) {
  ComputeTime sum = PowersOfTwo();
  AddScaled(PowersOfTwo(), 0.5, sum);
  const auto& type = *ComputeTime::descriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    EXPECT_EQ(sum.GetReflection()->GetDouble(sum, type.field(i)), 1.5 * (1 << i))
        << type.field(i)->name();
  }
}

}  // namespace
}  // namespace fabricast
