// Matrix products of dense weights, by cuBLASLt, which is loaded when it is first needed (dlopen).
#ifndef FABRICAST_KERNELS_DENSE_CUBLASLT_H_
#define FABRICAST_KERNELS_DENSE_CUBLASLT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/gpu/gpu_stream.h"
#include "kernels/int4/activations.h"
#include "kernels/int4/gemm_output.h"

namespace fabricast {

enum class DenseType { kBf16, kF16 };

// [outputs, inputs], row-major, in the GPU's memory; does not own it.
struct DenseMatrix {
  DenseType type = DenseType::kBf16;
  int64_t outputs = 0;
  int64_t inputs = 0;
  const void* data = nullptr;  // 16-byte aligned
};

// One owner; not thread-safe. Of the device that is current when it is made.
class CublasLt {
 public:
  // What Load tries, in this order: the names that the dynamic linker searches for (LD_LIBRARY_PATH
  // and the system's folders), CUDA 13 before 12, then the folders of a toolkit.
  static std::vector<std::string> Libraries();

  // kUnavailable, saying what was looked for and where, and which package has it, if none of
  // `libraries` can be loaded; also if there is no GPU.
  static absl::StatusOr<std::unique_ptr<CublasLt>> Load(
      const std::vector<std::string>& libraries = Libraries());
  virtual ~CublasLt() = default;

  // output = input x weights^T (+ output for kAddF32), FP32 accumulation, parts of a sum that is
  // split added in FP32 too. `input`: kBf16Rows for kBf16 weights, kF16Rows for kF16; inputs a
  // multiple of 8. Algorithms are chosen by cuBLASLt's heuristic when a shape is first seen, and
  // kept: Prepare does it ahead, for a stride of `stride` or of as many elements as there are
  // outputs, so that a later Multiply costs little on the host. Both may be called in a stream
  // capture. `workspace`: workspace_bytes(), 256-byte aligned; one product at a time uses it.
  //
  // kInvalidArgument if the formats do not fit together; kUnimplemented for kBf16 of FP16 weights,
  // which cuBLASLt does not have.
  virtual absl::Status Multiply(const DenseMatrix& weights, const Activations& input,
                                const GemmOutput& output, void* workspace, GpuStream stream) = 0;
  virtual absl::Status Prepare(const DenseMatrix& weights, int tokens, OutputKind output,
                               int64_t stride = 0) = 0;
  virtual int64_t workspace_bytes() const = 0;
  virtual int64_t version() const = 0;  // cublasLtGetVersion()
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_DENSE_CUBLASLT_H_
