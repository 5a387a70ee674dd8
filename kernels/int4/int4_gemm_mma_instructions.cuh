// What int4_gemm_mma.cu needs of the GPU's instructions: shared memory, FP16 pairs, mma.sync, and
// barriers in shared memory with copies that complete on them. For .cu files only.
#ifndef FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_INSTRUCTIONS_CUH_
#define FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_INSTRUCTIONS_CUH_

#include <cuda_fp16.h>

#include <cstdint>

namespace fabricast::int4_mma {

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ uint4 LoadShared128(uint32_t at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3},[%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at));
  return v;
}
__device__ __forceinline__ uint2 LoadShared64(uint32_t at) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1},[%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
  return v;
}
__device__ __forceinline__ uint32_t LoadShared32(uint32_t at) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0,[%1];" : "=r"(v) : "r"(at));
  return v;
}
__device__ __forceinline__ void StoreShared128(uint32_t at, const float (&v)[4]) {
  asm volatile("st.shared.v4.f32 [%0],{%1,%2,%3,%4};" ::"r"(at), "f"(v[0]), "f"(v[1]), "f"(v[2]),
               "f"(v[3])
               : "memory");
}
__device__ __forceinline__ uint32_t MultiplyF16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.f16x2 %0,%1,%2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
__device__ __forceinline__ uint32_t FmaF16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0,%1,%2,%3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ __forceinline__ float2 F16x2ToFloats(uint32_t v) {
  return __half22float2(*reinterpret_cast<const __half2*>(&v));
}
// (word & kMask) | kBits
template <uint32_t kMask, uint32_t kBits>
__device__ __forceinline__ uint32_t Insert(uint32_t word) {
  uint32_t d;
  asm("lop3.b32 %0,%1,%2,%3,0xea;" : "=r"(d) : "r"(word), "n"(kMask), "n"(kBits));
  return d;
}
// d = a b + c
__device__ __forceinline__ void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    float c0, float c1, float c2, float c3) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(c2),
        "f"(c3));
}
__device__ __forceinline__ void Add(float (&d)[4], float4 v) {
  d[0] += v.x;
  d[1] += v.y;
  d[2] += v.z;
  d[3] += v.w;
}
__device__ __forceinline__ float4 AsFloat4(const float (&v)[4]) {
  return make_float4(v[0], v[1], v[2], v[3]);
}

#if __CUDA_ARCH__ >= 900
constexpr int kCopyArrivals = 1;  // the lane that issues the copies
#else
constexpr int kCopyArrivals = 32;
#endif

__device__ __forceinline__ void InitBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0],%1;" ::"r"(barrier), "r"(arrivals));
}
__device__ __forceinline__ void ArriveIfLaneZero(uint32_t barrier, int lane) {
  asm volatile(
      "{\n.reg .pred p;\n.reg .b64 state;\nsetp.eq.s32 p,%1,0;\n"
      "@p mbarrier.arrive.shared.b64 state,[%0];\n}" ::"r"(barrier),
      "r"(lane)
      : "memory");
}
__device__ __forceinline__ void Wait(uint32_t barrier, int phase) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p,[%0],%1;\n"
      "@p bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(barrier),
      "r"(phase)
      : "memory");
#else
  asm volatile(
      "{\n.reg .pred p;\nAGAIN:\nmbarrier.test_wait.parity.shared.b64 p,[%0],%1;\n"
      "@p bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(barrier),
      "r"(phase)
      : "memory");
#endif
}

// Whether this lane, of a warp that is all there, has a part in issuing copies: one of them from
// compute capability 9.0 on, before all.
__device__ __forceinline__ bool IssuesCopies() {
#if __CUDA_ARCH__ >= 900
  uint32_t leader;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p,0xffffffff;\nselp.u32 %0,1,0,p;\n}"
               : "=r"(leader));
  return leader;
#else
  return true;
#endif
}

// How L2 is to keep what is copied.
enum class Reuse {
  kOnce,   // weights
  kOften,  // activations: every CTA reads them
};

// The copies into one stage, by the lanes that issue them: Begin, any number of Copy, End. Sizes
// are multiples of 16 bytes.
class StageLoad {
 public:
  __device__ explicit StageLoad(uint32_t barrier) : barrier_(barrier) {}

  __device__ __forceinline__ void Begin([[maybe_unused]] int bytes) const {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .b64 state;\n"
        "mbarrier.arrive.expect_tx.shared::cta.b64 state,[%0],%1;\n}" ::"r"(barrier_),
        "r"(bytes)
        : "memory");
#endif
  }
  template <Reuse kReuse>
  __device__ __forceinline__ void Copy(uint32_t to, const char* from, int bytes) const {
#if __CUDA_ARCH__ >= 900
    uint64_t policy;
    if constexpr (kReuse == Reuse::kOnce) {
      asm("createpolicy.fractional.L2::evict_first.b64 %0,1.0;" : "=l"(policy));
    } else {
      asm("createpolicy.fractional.L2::evict_last.b64 %0,1.0;" : "=l"(policy));
    }
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0],[%1],%2,[%3],%4;" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier_), "l"(policy)
        : "memory");
#else
    for (int i = static_cast<int>(threadIdx.x % 32) * 16; i < bytes; i += 512) {
      asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(to + i), "l"(from + i)
                   : "memory");
    }
#endif
  }
  __device__ __forceinline__ void End() const {
#if __CUDA_ARCH__ < 900
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier_) : "memory");
#endif
  }

 private:
  uint32_t barrier_;
};

}  // namespace fabricast::int4_mma

#endif  // FABRICAST_KERNELS_INT4_INT4_GEMM_MMA_INSTRUCTIONS_CUH_
