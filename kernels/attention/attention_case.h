// Batches for the attention kernels' tests: made on the CPU, run on the GPU, compared with float64.
//
// All that a kernel must not use is NaN: tokens beyond a context in its last block, blocks of
// nobody, what lies between the query heads. All that it must not write is 0xFF before, and is
// checked.
#ifndef FABRICAST_KERNELS_ATTENTION_ATTENTION_CASE_H_
#define FABRICAST_KERNELS_ATTENTION_ATTENTION_CASE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/attention/attention_arguments.h"
#include "kernels/attention/kv_cache.h"

namespace fabricast {

struct AttentionCaseEntry {
  int rows = 1;
  int past = 0;  // tokens before them
};

struct AttentionCaseOptions {
  int heads = 1;
  int kv_heads = 1;
  int head_dim = 128;
  std::vector<AttentionCaseEntry> entries;
  float query_size = 1;  // standard deviation of the queries' elements; keys' and values' is 1
  uint32_t seed = 1;
  // Queries (of one row and head) that are compared with float64; all if there are no more.
  int compared = 2000;
};

// Needs a GPU; ends the program if its memory or a copy fails. One thread.
class AttentionCase {
 public:
  explicit AttentionCase(const AttentionCaseOptions& options);

  // Without workspace.
  const AttentionArguments& arguments() const { return arguments_; }
  int max_rows() const;
  int total_rows() const;

  using Launch = std::function<absl::Status(const AttentionArguments&)>;
  // Runs `launch` twice, which must compute the entries of min_rows ... max_rows rows. Returns what
  // is wrong: another status than OK, an output beyond the tolerance, a write to where nothing
  // belongs, other bits at the second run; empty if all is well.
  std::string Check(const Launch& launch, int min_rows, int max_rows);
  // ||out - reference|| / ||reference|| of the compared queries of the last Check.
  double relative_error() const { return relative_error_; }

 private:
  struct DeviceFree {
    void operator()(void* memory) const;
  };
  using DeviceMemory = std::unique_ptr<void, DeviceFree>;
  template <typename T>
  T* ToDevice(const std::vector<T>& values);

  std::vector<float> Gather(size_t entry, int kv_head, int value, int tokens) const;
  std::string Compare(const std::vector<uint16_t>& output, int min_rows, int max_rows);

  AttentionCaseOptions options_;
  std::vector<int32_t> first_row_, rows_, past_, table_start_, table_;
  int all_rows_ = 0;  // of the batch, those of no entry too
  std::vector<uint16_t> cache_, queries_;
  std::vector<DeviceMemory> memory_;
  AttentionArguments arguments_;
  double relative_error_ = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_KERNELS_ATTENTION_ATTENTION_CASE_H_
