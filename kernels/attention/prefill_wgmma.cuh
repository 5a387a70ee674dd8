// Hopper's matrix instructions and copies, as prefill_wgmma.cu uses them. Only for code that is
// compiled for sm_90a.
#ifndef FABRICAST_KERNELS_ATTENTION_PREFILL_WGMMA_CUH_
#define FABRICAST_KERNELS_ATTENTION_PREFILL_WGMMA_CUH_

#include <cuda_runtime.h>

#include <cstdint>

namespace fabricast {

// --- Barriers. ---

__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Hardware barrier `id` of a block, for `threads` of it.
__device__ __forceinline__ void NamedBarrierSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void NamedBarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Makes this thread's writes to shared memory visible to wgmma and to bulk copies.
__device__ __forceinline__ void FenceForAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- Copies from global to shared memory. ---

// `bytes`, a multiple of 16, by this thread; they count at `barrier`.
__device__ __forceinline__ void BulkCopy(uint32_t to, const void* from, int bytes,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// 16 bytes; zeros unless `valid`.
__device__ __forceinline__ void CopyOrZero(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void WaitForCopies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// --- Warpgroups. ---

// The registers of each of the warpgroup's threads.
template <int kRegisters>
__device__ __forceinline__ void IncreaseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void DecreaseRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Returns when at most kGroups of the committed groups are still running.
template <int kGroups>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// Keeps the compiler from moving uses of registers across this point: it does not know that wgmma
// writes them until it is waited for.
template <int kCount>
__device__ __forceinline__ void KeepInPlace(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// A matrix in shared memory with the 128-byte swizzle: [64-element parts][lines][128 bytes], where
// 16-byte chunk c of line l lies at c ^ (l % 8), 1,024-byte aligned. The stride byte offset is from
// a group of 8 lines to the next. The leading byte offset is from a part to the next; it counts
// only where the product sums over the lines.
__device__ __forceinline__ uint64_t MatrixDescriptor(uint32_t shared_address, int part_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kStrideOffset = 8 * 128;
  return kSwizzle128 | (kStrideOffset >> 4) << 32 | static_cast<uint64_t>(part_bytes >> 4) << 16 |
         shared_address >> 4;
}

// How far an address within one matrix moves its descriptor.
__host__ __device__ constexpr uint64_t DescriptorOffset(int bytes) { return bytes >> 4; }

// d[64 x 128] += a[64 x 16] b[16 x 128]; without d's old value unless `accumulate`. BF16 to FP32.
// a: registers as those of mma.sync m16n8k16, of which each warp has 16 rows. b: in shared memory,
// its 16 rows' elements contiguous, or with kSumOverLines its 128 columns'.
//
// Thread t's d[i] is of row t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8 and column
// i / 4 * 8 + t % 4 * 2 + i % 2.
template <bool kSumOverLines>
__device__ __forceinline__ void Wgmma64x128(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                            bool accumulate) {
#define FABRICAST_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FABRICAST_16(i) FABRICAST_4(i), FABRICAST_4(i + 4), FABRICAST_4(i + 8), FABRICAST_4(i + 12)
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, %70;\n"
      "}\n"
      : FABRICAST_16(0), FABRICAST_16(16), FABRICAST_16(32), FABRICAST_16(48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}),
        "n"(int{kSumOverLines}));
#undef FABRICAST_16
#undef FABRICAST_4
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ATTENTION_PREFILL_WGMMA_CUH_
