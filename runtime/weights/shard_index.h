// model.safetensors.index.json: which shard of a checkpoint holds which tensor.
#ifndef FABRICAST_RUNTIME_WEIGHTS_SHARD_INDEX_H_
#define FABRICAST_RUNTIME_WEIGHTS_SHARD_INDEX_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fabricast {

struct IndexEntry {
  std::string tensor;
  std::string shard;  // the name of a file beside the index, without folders
};

// The index's weight_map, which is not empty. kInvalidArgument, as "FILE: TENSOR: VALUE: MEND", if
// it has none, maps something else than tensors to file names, or a file is in another folder.
absl::StatusOr<std::vector<IndexEntry>> ParseShardIndex(absl::string_view file,
                                                        absl::string_view json);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_WEIGHTS_SHARD_INDEX_H_
