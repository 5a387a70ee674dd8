// Rows in BF16 to any layout of Activations: for tests, benchmarks and inputs that no other kernel
// produces. Those of a model's layers are stored by the kernels that compute them.
#ifndef FABRICAST_KERNELS_INT4_PACK_ACTIVATIONS_H_
#define FABRICAST_KERNELS_INT4_PACK_ACTIVATIONS_H_

#include "absl/status/status.h"
#include "kernels/gpu/gpu_stream.h"
#include "kernels/int4/activations.h"

namespace fabricast {

// Enqueues. `rows`: BF16 [tokens, inputs], row-major. BF16 values come out exact in the packed
// formats if no smaller than 2^-28 of the largest of their row, and finite.
absl::Status PackActivations(const void* rows, const Activations& to, const LaunchOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_INT4_PACK_ACTIVATIONS_H_
