// The descriptions of hardware that clusters refer to by name.
#ifndef FABRICAST_TOPOLOGY_SPEC_LIBRARY_H_
#define FABRICAST_TOPOLOGY_SPEC_LIBRARY_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "topology/calibration.pb.h"
#include "topology/cluster.pb.h"

namespace fabricast {

// All hardware specs and calibrations by name. Two of one name are an error that names both files.
//
// What is in it is sound by itself: numbers are within bounds, every number of a spec has a source,
// what a spec must give is given, PCIe trees are trees.
class SpecLibrary {
 public:
  // The specs built into the program.
  static const SpecLibrary& Bundled();

  // Adds every .txtpb below `directory` (first line: "# proto-message: fabricast.GpuSpec" and so
  // on). Nothing is added if there is an error.
  absl::Status AddDirectory(const std::string& directory);
  absl::Status AddText(absl::string_view file, absl::string_view text);

  // As AddDirectory, but leaves out what is there already with the same contents: for the folder
  // beside a cluster file, which can be the one that was built in.
  absl::Status AddNewFromDirectory(const std::string& directory);

  // nullptr if there is none. Valid until the library changes or goes.
  const GpuSpec* gpu(absl::string_view name) const;
  const NicSpec* nic(absl::string_view name) const;
  const SwitchSpec* switch_spec(absl::string_view name) const;
  const HostSpec* host(absl::string_view name) const;
  const KernelCalibration* kernels(absl::string_view name) const;
  const NcclCalibration* nccl(absl::string_view name) const;

  // Names of all GPU specs, sorted; for messages and listings. Likewise the others.
  std::vector<std::string> gpu_names() const;
  std::vector<std::string> nic_names() const;
  std::vector<std::string> switch_names() const;
  std::vector<std::string> host_names() const;
  std::vector<std::string> kernels_names() const;
  std::vector<std::string> nccl_names() const;

 private:
  enum class Known { kRefuse, kSkipIfEqual };

  template <typename Spec>
  struct Entry {
    Spec spec;
    std::string file;
  };
  template <typename Spec>
  using Entries = std::map<std::string, Entry<Spec>, std::less<>>;

  template <typename Spec>
  absl::Status Add(absl::string_view file, absl::string_view text, Known known,
                   Entries<Spec>* entries);
  absl::Status AddText(absl::string_view file, absl::string_view text, Known known);
  absl::Status AddDirectory(const std::string& directory, Known known);

  Entries<GpuSpec> gpus_;
  Entries<NicSpec> nics_;
  Entries<SwitchSpec> switches_;
  Entries<HostSpec> hosts_;
  Entries<KernelCalibration> kernels_;
  Entries<NcclCalibration> nccls_;
};

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_SPEC_LIBRARY_H_
