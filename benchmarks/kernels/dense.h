// Dense matrix products by cuBLASLt: the ceiling of all that compute, and the lm_head.
#ifndef FABRICAST_BENCHMARKS_KERNELS_DENSE_H_
#define FABRICAST_BENCHMARKS_KERNELS_DENSE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/dense/cublaslt.h"
#include "kernels/timing/benchmark_main.h"
#include "kernels/timing/gpu_timer.h"
#include "kernels/timing/kernel_results.pb.h"

namespace fabricast {

// Of BF16, 8,192 x 8,192 x 8,192, normal numbers, lone.
absl::StatusOr<double> MatmulTflops(GpuTimer& timer, CublasLt& cublas);

// Adds the times of a BF16 lm_head of Llama 3's 128,256 tokens of vocabulary, for 1 to 256 rows.
absl::Status TimeLmHead(GpuTimer& timer, CublasLt& cublas, const std::string& model, int hidden,
                        const BenchmarkOptions& options, KernelResults& results);

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_KERNELS_DENSE_H_
