// LoadModel: a name of the catalogue, a file or a folder.
#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "runtime/model/catalogue.h"
#include "runtime/model/catalogue_files.h"
#include "runtime/model/config_fields.h"
#include "runtime/model/model.h"

namespace fabricast {
namespace {

namespace fs = std::filesystem;

// "runtime/model/catalogue/llama-3.1-8b-instruct.json": "llama-3.1-8b-instruct".
std::string CatalogueName(const EmbeddedFile& file) {
  return fs::path(std::string(file.path)).stem().string();
}

std::string CatalogueNames() {
  return absl::StrJoin(ModelCatalogue(), ", ", [](std::string* out, const CatalogueEntry& entry) {
    absl::StrAppend(out, entry.name);
  });
}

}  // namespace

const std::vector<CatalogueEntry>& ModelCatalogue() {
  static const auto& catalogue = *[] {
    auto* entries = new std::vector<CatalogueEntry>;
    for (const EmbeddedFile& file : CatalogueFiles()) {
      const auto config = nlohmann::json::parse(file.contents.begin(), file.contents.end());
      entries->push_back({CatalogueName(file), config.value("_description", std::string()),
                          config.value("_source", std::string())});
    }
    std::sort(entries->begin(), entries->end(),
              [](const CatalogueEntry& a, const CatalogueEntry& b) { return a.name < b.name; });
    return entries;
  }();
  return catalogue;
}

absl::StatusOr<Model> LoadModel(absl::string_view spec, absl::string_view quantization) {
  if (const std::optional<absl::string_view> text = CatalogueConfig(spec); text.has_value()) {
    return ParseModelConfig(absl::StrCat(spec, ".json"), *text, quantization);
  }
  const std::string as_given(spec);
  fs::path path = as_given;
  std::error_code error;
  if (spec.empty() || spec.find('\0') != absl::string_view::npos || !fs::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat("model \"", absl::CHexEscape(spec.substr(0, 200)),
                                            "\": neither a file or folder nor one of ",
                                            CatalogueNames()));
  }
  if (fs::is_directory(path, error)) path /= "config.json";
  const absl::StatusOr<std::string> text = ReadConfigFile(path.string());
  if (!text.ok()) return text.status();
  return ParseModelConfig(path.string(), *text, quantization);
}

}  // namespace fabricast
