#include "runtime/model/catalogue.h"

#include "absl/strings/str_cat.h"
#include "runtime/model/catalogue_files.h"

namespace fabricast {

std::optional<absl::string_view> CatalogueConfig(absl::string_view name) {
  for (const EmbeddedFile& file : CatalogueFiles()) {
    if (file.path == absl::StrCat("runtime/model/catalogue/", name, ".json")) return file.contents;
  }
  return std::nullopt;
}

}  // namespace fabricast
