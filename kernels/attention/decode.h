// The kernel behind DecodeAttention, for head_dim 64 and 128.
//
// The blocks of all entries' contexts stand in one line that is cut into equal runs. A CTA has one
// run and one KV head, and the CTAs of a run's heads stand together, so that they read a block's 64
// KiB at about the same time; a warp takes every warps-th block. What a CTA has of one entry is
// merged over its warps in shared memory; where an entry was cut, partial results go to the
// workspace, and the CTA that comes last merges them by their order in the line.
#ifndef FABRICAST_KERNELS_ATTENTION_DECODE_H_
#define FABRICAST_KERNELS_ATTENTION_DECODE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/attention/attention_arguments.h"
#include "kernels/gpu/gpu_stream.h"

namespace fabricast {

// Of the workspace. Its counters are zero again after every launch.
int64_t DecodeAttentionMmaWorkspaceBytes(int entries, int heads, int head_dim);

// `warps` of a CTA: 8, which take up to 152 KiB of shared memory; 4, which take half; 0: 8 where
// they fit.
absl::Status DecodeAttentionMma(const AttentionArguments& arguments, int warps,
                                const LaunchOptions& options);

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ATTENTION_DECODE_H_
