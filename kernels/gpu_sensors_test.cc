#include "kernels/gpu_sensors.h"

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

TEST(GpuSensorsTest, GpuThatIsNotThereIsAnErrorWithOrWithoutADriver) {
  const absl::StatusOr<GpuSensors> sensors = GpuSensors::Open("ffff:ff:1f.0");
  ASSERT_FALSE(sensors.ok());
  EXPECT_TRUE(absl::IsUnavailable(sensors.status()) || absl::IsNotFound(sensors.status()))
      << sensors.status();
}

}  // namespace
}  // namespace fabricast
