// For tests: runs kernels on each instruction set that they are compiled for and that is there.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_EACH_TARGET_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_EACH_TARGET_H_

// In this order.
// clang-format off
#include "runtime/executor/cpu/targets.h"
#include "hwy/highway.h"
// clang-format on

#include <cstdint>

namespace fabricast {

// Calls test(fuses): whether the target fuses multiply and add, as all do whose results must be the
// same bits.
template <typename Test>
void ForEachTarget(const Test& test) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    SCOPED_TRACE(hwy::TargetName(target));
    test((target & (HWY_AVX2 | HWY_AVX3)) != 0);
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_EACH_TARGET_H_
