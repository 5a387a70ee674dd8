#ifndef FABRICAST_TOOLS_EMBED_EMBEDDED_FILE_H_
#define FABRICAST_TOOLS_EMBED_EMBEDDED_FILE_H_

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace fabricast {

// A text file of the source tree, compiled into the binary by cc_embed (tools/embed.bzl). Both
// views live as long as the program.
struct EmbeddedFile {
  absl::string_view path;  // From the top of the workspace: "topology/specs/h200.txtpb".
  absl::string_view contents;
};

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_EMBED_EMBEDDED_FILE_H_
