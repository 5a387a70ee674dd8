// Which processors the vector kernels are compiled for. To be included before Highway's headers.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CPU_TARGETS_H_
#define FABRICAST_RUNTIME_EXECUTOR_CPU_TARGETS_H_

// On x86 these are AVX-512 and AVX2; older ones take the compiler's baseline. Each target costs
// compile time, and none of the others has instructions that the kernels would use.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)

// Else a baseline of x86-64-v3, which does not include AES, would count as SSSE3.
#define HWY_DISABLE_PCLMUL_AES

#endif  // FABRICAST_RUNTIME_EXECUTOR_CPU_TARGETS_H_
