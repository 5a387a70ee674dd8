// The bundled models' config.json, by name.
#ifndef FABRICAST_RUNTIME_MODEL_CATALOGUE_H_
#define FABRICAST_RUNTIME_MODEL_CATALOGUE_H_

#include <optional>

#include "absl/strings/string_view.h"

namespace fabricast {

// The text of the config.json that is bundled as `name`, such as
// "llama-3.1-405b-instruct-awq-int4"; nothing if none is. It lives as long as the program.
std::optional<absl::string_view> CatalogueConfig(absl::string_view name);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_MODEL_CATALOGUE_H_
