// A checkpoint folder of Hugging Face, mapped into memory: model.safetensors, or the shards that
// model.safetensors.index.json lists.
//
// Opening reads the headers only; a tensor's pages are read when they are touched, so a stage reads
// and holds its own share and no more.
#ifndef FABRICAST_RUNTIME_WEIGHTS_CHECKPOINT_H_
#define FABRICAST_RUNTIME_WEIGHTS_CHECKPOINT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/weights/tensor.h"

namespace fabricast {

// Thread-safe once open (immutable).
class Checkpoint {
 public:
  // model.safetensors where both are there, as transformers does. Files must not shrink while this
  // lives: touching what is gone ends the process with SIGBUS.
  //
  // kNotFound: no such folder, or neither file in it, or a shard is missing. kUnimplemented:
  // PyTorch weights only. kInvalidArgument, as "FILE: TENSOR: VALUE: MEND": a header that is too
  // long for its file, not JSON or nested too deeply; offsets out of range, overlapping or with
  // holes; a size that contradicts dtype and shape; an index that names tensors which its shards
  // lack, or other folders; one tensor in two shards; a pointer of Git LFS. What the system says
  // if a file cannot be read.
  static absl::StatusOr<std::shared_ptr<const Checkpoint>> Open(const std::string& folder);

  virtual ~Checkpoint() = default;

  // Null if there is none of that name. Valid as long as the checkpoint lives.
  virtual const Tensor* Find(absl::string_view name) const = 0;
  virtual std::vector<const Tensor*> tensors() const = 0;  // all, by name
  // The file that holds `tensor`, for messages.
  virtual const std::string& FileOf(const Tensor& tensor) const = 0;
  virtual const std::string& folder() const = 0;
  virtual int64_t total_bytes() const = 0;  // of all tensors

  // Tells the kernel that `tensor`'s pages will not be read again (they come back if they are).
  virtual void Release(const Tensor& tensor) const = 0;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WEIGHTS_CHECKPOINT_H_
