// wgmma with the A operand in registers and B in shared memory, and its order. For .cu files only;
// compute capability 9.0 only (sm_90a).
#ifndef FABRICAST_KERNELS_INT4_INT4_GEMM_WGMMA_INSTRUCTIONS_CUH_
#define FABRICAST_KERNELS_INT4_INT4_GEMM_WGMMA_INSTRUCTIONS_CUH_

#include <cstdint>

namespace fabricast {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What shared memory holds of B, for wgmma: rows of 64 FP16 (128 bytes), one for each column of B,
// the 16-byte chunks c of row r at c ^ (r % 8); eight rows an atom of 1,024 bytes, on which
// `address` and its parts lie. Bits 0-13 address / 16; 16-29 ignored with this layout (1 by
// convention); 32-45 bytes from atom to atom / 16; 62-63: 1, the 128-byte swizzle. The next k16
// step is 32 bytes on.
__device__ __forceinline__ uint64_t WgmmaDescriptor(uint32_t address) {
  return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | uint64_t{1} << 16 | (address >> 4);
}

// d += a b: a 64 x 16, b 16 x kN, in FP16. Warp w of the four has rows 16 w ... 16 w + 15, its
// lanes hold a as the A operand of mma.m16n8k16 and d as its D operands, eight columns after eight.
template <int kN>
__device__ __forceinline__ void WgmmaM64K16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b);

#define FABRICAST_F8(i)                                                                       \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

template <>
__device__ __forceinline__ void WgmmaM64K16<32>(float (&d)[16], const uint32_t (&a)[4],
                                                uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
      : FABRICAST_F8(0), FABRICAST_F8(8)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ __forceinline__ void WgmmaM64K16<48>(float (&d)[24], const uint32_t (&a)[4],
                                                uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n48k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23}, "
      "{%24, %25, %26, %27}, %28, 1, 1, 1, 0;"
      : FABRICAST_F8(0), FABRICAST_F8(8), FABRICAST_F8(16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ __forceinline__ void WgmmaM64K16<64>(float (&d)[32], const uint32_t (&a)[4],
                                                uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
      : FABRICAST_F8(0), FABRICAST_F8(8), FABRICAST_F8(16), FABRICAST_F8(24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ __forceinline__ void WgmmaM64K16<96>(float (&d)[48], const uint32_t (&a)[4],
                                                uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "
      "{%48, %49, %50, %51}, %52, 1, 1, 1, 0;"
      : FABRICAST_F8(0), FABRICAST_F8(8), FABRICAST_F8(16), FABRICAST_F8(24), FABRICAST_F8(32),
        FABRICAST_F8(40)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ __forceinline__ void WgmmaM64K16<128>(float (&d)[64], const uint32_t (&a)[4],
                                                 uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
      : FABRICAST_F8(0), FABRICAST_F8(8), FABRICAST_F8(16), FABRICAST_F8(24), FABRICAST_F8(32),
        FABRICAST_F8(40), FABRICAST_F8(48), FABRICAST_F8(56)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef FABRICAST_F8

// Registers written before are those that the next wgmma reads.
__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Makes a group of what was issued since the last.
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Returns when all groups but the newest `kPending` are done.
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// The compiler computes the values before what follows, or after what is before.
template <int kCount>
__device__ __forceinline__ void PinRegisters(uint32_t (&values)[kCount]) {
#pragma unroll
  for (uint32_t& value : values) asm volatile("" : "+r"(value)::"memory");
}
template <int kCount>
__device__ __forceinline__ void PinRegisters(float (&values)[kCount]) {
#pragma unroll
  for (float& value : values) asm volatile("" : "+f"(value)::"memory");
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_INT4_GEMM_WGMMA_INSTRUCTIONS_CUH_
