#include "topology/spec_library.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/util/message_differencer.h"
#include "tools/embed/embedded_file.h"
#include "topology/nearest_name.h"
#include "topology/spec_files.h"
#include "topology/spec_rules.h"
#include "topology/text_proto.h"

namespace fabricast {
namespace {

template <typename Entries>
auto Find(const Entries& entries, absl::string_view name)
    -> decltype(&entries.begin()->second.spec) {
  const auto entry = entries.find(std::string(name));
  return entry == entries.end() ? nullptr : &entry->second.spec;
}

template <typename Entries>
std::vector<std::string> Names(const Entries& entries) {
  std::vector<std::string> names;
  for (const auto& [name, unused] : entries) names.push_back(name);
  return names;
}

}  // namespace

const SpecLibrary& SpecLibrary::Bundled() {
  static const SpecLibrary& library = *[] {
    auto* const bundled = new SpecLibrary;
    for (const EmbeddedFile& file : SpecFiles()) {
      const absl::Status status = bundled->AddText(file.path, file.contents);
      if (status.ok()) continue;
      // The files were built into this program, so this is its bug; bundled_test finds it.
      std::fprintf(stderr, "bundled spec: %s\n", status.ToString().c_str());
      std::abort();
    }
    return bundled;
  }();
  return library;
}

template <typename Spec>
absl::Status SpecLibrary::Add(absl::string_view file, absl::string_view text, Known known,
                              Entries<Spec>* entries) {
  Spec spec;
  absl::Status status = ParseTextProto(file, text, &spec);
  if (status.ok()) status = CheckSpec(file, spec);
  if (!status.ok()) return status;
  const auto present = entries->find(spec.name());
  if (present == entries->end()) {
    std::string name = spec.name();
    entries->emplace(std::move(name), Entry<Spec>{std::move(spec), std::string(file)});
    return absl::OkStatus();
  }
  if (known == Known::kSkipIfEqual &&
      google::protobuf::util::MessageDifferencer::Equals(present->second.spec, spec)) {
    return absl::OkStatus();
  }
  return absl::AlreadyExistsError(absl::StrCat(file, ": ", spec.GetDescriptor()->name(), " \"",
                                               spec.name(), "\" is also in ", present->second.file,
                                               "; rename one of them"));
}

absl::Status SpecLibrary::AddText(absl::string_view file, absl::string_view text) {
  return AddText(file, text, Known::kRefuse);
}

absl::Status SpecLibrary::AddText(absl::string_view file, absl::string_view text, Known known) {
  const absl::string_view message = DeclaredMessage(text);
  if (message == "fabricast.GpuSpec") return Add(file, text, known, &gpus_);
  if (message == "fabricast.NicSpec") return Add(file, text, known, &nics_);
  if (message == "fabricast.SwitchSpec") return Add(file, text, known, &switches_);
  if (message == "fabricast.HostSpec") return Add(file, text, known, &hosts_);
  if (message == "fabricast.KernelCalibration") return Add(file, text, known, &kernels_);
  if (message == "fabricast.NcclCalibration") return Add(file, text, known, &nccls_);
  static const auto& kinds = *new std::vector<std::string>{
      "fabricast.GpuSpec",  "fabricast.NicSpec",           "fabricast.SwitchSpec",
      "fabricast.HostSpec", "fabricast.KernelCalibration", "fabricast.NcclCalibration"};
  if (message.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ":1: the first line must say what the file is, as \"# proto-message: ",
                     "fabricast.GpuSpec\" does", Suggest("", kinds)));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      file, ":1: ", message, " is neither a spec nor a calibration", Suggest(message, kinds)));
}

absl::Status SpecLibrary::AddDirectory(const std::string& directory) {
  return AddDirectory(directory, Known::kRefuse);
}

absl::Status SpecLibrary::AddNewFromDirectory(const std::string& directory) {
  return AddDirectory(directory, Known::kSkipIfEqual);
}

absl::Status SpecLibrary::AddDirectory(const std::string& directory, Known known) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::vector<std::string> files;
  fs::recursive_directory_iterator entry(directory, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    if (entry->path().extension() == ".txtpb") files.push_back(entry->path().string());
  }
  if (error) {
    return absl::NotFoundError(absl::StrCat(directory, ": ", error.message()));
  }
  std::sort(files.begin(), files.end());
  SpecLibrary extended = *this;
  for (const std::string& file : files) {
    absl::StatusOr<std::string> text = ReadTextFile(file);
    if (!text.ok()) return text.status();
    const absl::Status status = extended.AddText(file, *text, known);
    if (!status.ok()) return status;
  }
  *this = std::move(extended);
  return absl::OkStatus();
}

const GpuSpec* SpecLibrary::gpu(absl::string_view name) const { return Find(gpus_, name); }
const NicSpec* SpecLibrary::nic(absl::string_view name) const { return Find(nics_, name); }
const SwitchSpec* SpecLibrary::switch_spec(absl::string_view name) const {
  return Find(switches_, name);
}
const HostSpec* SpecLibrary::host(absl::string_view name) const { return Find(hosts_, name); }
const KernelCalibration* SpecLibrary::kernels(absl::string_view name) const {
  return Find(kernels_, name);
}
const NcclCalibration* SpecLibrary::nccl(absl::string_view name) const {
  return Find(nccls_, name);
}

std::vector<std::string> SpecLibrary::gpu_names() const { return Names(gpus_); }
std::vector<std::string> SpecLibrary::nic_names() const { return Names(nics_); }
std::vector<std::string> SpecLibrary::switch_names() const { return Names(switches_); }
std::vector<std::string> SpecLibrary::host_names() const { return Names(hosts_); }
std::vector<std::string> SpecLibrary::kernels_names() const { return Names(kernels_); }
std::vector<std::string> SpecLibrary::nccl_names() const { return Names(nccls_); }

}  // namespace fabricast
