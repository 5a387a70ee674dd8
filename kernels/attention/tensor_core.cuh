// The instructions that the attention kernels are made of. For .cu files; compute capability 8.0
// and later.
#ifndef FABRICAST_KERNELS_ATTENTION_TENSOR_CORE_CUH_
#define FABRICAST_KERNELS_ATTENTION_TENSOR_CORE_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fabricast {

__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Four 8 x 8 matrices of 16 bits; lane l gives the address of row l % 8 of matrix l / 8. A lane
// gets of each matrix row lane / 4, columns lane % 4 * 2 and the next.
__device__ __forceinline__ void LoadMatrices(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// The same of the matrices' transposes.
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// sum += a b: 16 x 8 += (16 x 16) (16 x 8), BF16 to FP32 (mma.m16n8k16).
__device__ __forceinline__ void MultiplyAdd(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2^x within 2 units in the last place; 0 for -infinity.
__device__ __forceinline__ float Exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// `low` in the low half.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

// Over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float RowMax(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffff, value, 2));
}
__device__ __forceinline__ float RowSum(float value) {
  value += __shfl_xor_sync(0xffffffff, value, 1);
  return value + __shfl_xor_sync(0xffffffff, value, 2);
}

__device__ __forceinline__ void InitializeBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to copies; then synchronise the threads.
__device__ __forceinline__ void PublishBarriers() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ __forceinline__ void WaitForBarrier(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
#else
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
#endif
  }
}

// Arrivals that a barrier gets when `threads` threads call FetchToShared for it once.
__device__ constexpr int FetchArrivals([[maybe_unused]] int threads) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  return threads;
#else
  return 1;
#endif
}

// Before the FetchToShared calls of one phase, of `bytes` together: by all threads that make them.
__device__ __forceinline__ void ExpectFetch([[maybe_unused]] uint32_t barrier,
                                            [[maybe_unused]] int bytes,
                                            [[maybe_unused]] int thread) {
#if __CUDA_ARCH__ >= 900
  if (thread == 0) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
  }
#endif
}

// Begins to copy `bytes`, a multiple of 16, to shared memory: one bulk copy by thread 0 where the
// GPU has it, else 16 bytes at a time by all of `threads`. kOnce: they are the first to leave the
// L2 cache.
template <bool kOnce = false>
__device__ __forceinline__ void FetchToShared(uint32_t to, const void* from, int bytes,
                                              [[maybe_unused]] uint32_t barrier, int thread,
                                              [[maybe_unused]] int threads) {
#if __CUDA_ARCH__ >= 900
  if (thread == 0) {
    if constexpr (kOnce) {
      asm volatile(
          "{\n.reg .b64 policy;\n"
          "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
          "[%0], [%1], %2, [%3], policy;\n}" ::"r"(to),
          "l"(from), "r"(bytes), "r"(barrier)
          : "memory");
    } else {
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
          "[%0], [%1], %2, [%3];" ::"r"(to),
          "l"(from), "r"(bytes), "r"(barrier)
          : "memory");
    }
  }
#else
  for (int i = thread * 16; i < bytes; i += threads * 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i),
                 "l"(static_cast<const char*>(from) + i)
                 : "memory");
  }
#endif
}

// After them, by all threads.
__device__ __forceinline__ void EndFetch([[maybe_unused]] uint32_t barrier) {
#if __CUDA_ARCH__ < 900
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
#endif
}

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ATTENTION_TENSOR_CORE_CUH_
