// The input of a matrix product, in the layout that its kernel reads: produced by the kernel that
// computes it (norm, SwiGLU, attention), so that no pass is added for packing.
#ifndef FABRICAST_KERNELS_INT4_ACTIVATIONS_H_
#define FABRICAST_KERNELS_INT4_ACTIVATIONS_H_

#include <cstdint>

namespace fabricast {

enum class ActivationFormat {
  // [tokens, inputs], row-major: what cuBLASLt reads.
  kBf16Rows,
  kF16Rows,
  // Records of 128 inputs, one after another, for int4_gemm_mma. A record: [rows][128] FP16, in the
  // order of inputs, the 64-byte halves of each 128 bytes swapped for odd tokens (bank conflicts);
  // then for each of 8 x n_tiles slots {-sum of bias(k) x, -2^24 sum of x} in FP32, where bias is
  // 1024 if k % 4 < 2, else 64; padded to 128 bytes. rows is `tokens` if tokens <= 8, else slots().
  kMma,
  // Records of 128 inputs for int4_gemm_wgmma: [2 halves of 64 inputs][slots()][128 bytes], FP16,
  // in
  // the order of the A fragments' inputs, 16-byte chunks c of slot s at c ^ (s % 8): wgmma's
  // 128-byte
  // swizzle, K-major.
  kWgmma,
};

// FP16 values are x times a power of two per token that brings the largest of its row to [2^14,
// 2^15); token_scale undoes it. Rows are not scaled.
struct ActivationLayout {
  ActivationFormat format = ActivationFormat::kBf16Rows;
  int tokens = 0;
  int64_t inputs = 0;

  bool packed() const {
    return format == ActivationFormat::kMma || format == ActivationFormat::kWgmma;
  }
  // Of inputs: 128 that share scales and zeros; the last may be used in part, and is zero beyond.
  int64_t groups() const { return (inputs + 127) / 128; }
  // n8 tiles of kMma: 1, 2, 4 or 8.
  int n_tiles() const { return tokens <= 8 ? 1 : tokens <= 16 ? 2 : tokens <= 32 ? 4 : 8; }
  // Tokens with those that are zero and only fill tiles.
  int slots() const {
    switch (format) {
      case ActivationFormat::kMma:
        return 8 * n_tiles();
      case ActivationFormat::kWgmma:
        return (tokens + 15) / 16 * 16;
      default:
        return tokens;
    }
  }
  // Of a record of kMma that hold values.
  int rows() const { return format == ActivationFormat::kMma && tokens <= 8 ? tokens : slots(); }
  int64_t record_bytes() const {
    if (format == ActivationFormat::kMma) {
      return (int64_t{rows()} * 256 + slots() * 8 + 127) / 128 * 128;
    }
    return int64_t{slots()} * 256;
  }
  int64_t bytes() const {
    return packed() ? groups() * record_bytes() : tokens * inputs * int64_t{2};
  }
};

// In the GPU's memory; does not own it.
struct Activations {
  ActivationLayout layout;
  void* data = nullptr;          // layout.bytes(), 128-byte aligned
  float* token_scale = nullptr;  // [tokens]; packed formats only
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_ACTIVATIONS_H_
