#include "topology/spec_rules.h"

#include <cmath>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "topology/field_rules.h"
#include "topology/pcie_tree.h"

namespace fabricast {
namespace {

using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;

// What all hardware specs have in common.
absl::Status CheckHardware(absl::string_view file, absl::string_view kind, const std::string& name,
                           const Message& spec, const std::vector<std::string>& needed) {
  absl::Status status = CheckTexts(file, spec);
  if (status.ok()) status = CheckObjectName(file, kind, name);
  const std::string object = absl::StrCat(kind, " ", name);
  if (status.ok()) status = CheckFieldsGiven(file, object, spec, needed);
  if (status.ok()) status = CheckNumbers(file, object, spec);
  if (status.ok()) status = CheckSources(file, object, spec);
  return status;
}

// Every double of `message` and below is finite and not negative.
absl::Status CheckDoubles(absl::string_view file, absl::string_view object,
                          const Message& message) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      const int count =
          field->is_repeated() ? message.GetReflection()->FieldSize(message, field) : 1;
      for (int i = 0; i < count; ++i) {
        const Message& entry = field->is_repeated()
                                   ? message.GetReflection()->GetRepeatedMessage(message, field, i)
                                   : message.GetReflection()->GetMessage(message, field);
        const std::string name =
            field->is_repeated() ? absl::StrCat(field->name(), "[", i, "]") : field->name();
        const absl::Status status = CheckDoubles(file, absl::StrCat(object, " ", name), entry);
        if (!status.ok()) return status;
      }
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE && !field->is_repeated()) {
      const double value = message.GetReflection()->GetDouble(message, field);
      if (std::isfinite(value) && value >= 0) continue;
      return absl::InvalidArgumentError(absl::StrCat(file, ": ", object, ": ", field->name(),
                                                     " is ", value,
                                                     "; it must be at least 0 and finite"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCurve(absl::string_view file, absl::string_view object,
                        const google::protobuf::RepeatedPtrField<EfficiencyPoint>& points) {
  if (points.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": ", object, ": points is empty; give at least one"));
  }
  for (int i = 0; i < points.size(); ++i) {
    if (!(points[i].x() > 0)) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": ", object, ": points[", i, "]: x is ",
                                                     points[i].x(), "; it must be more than 0"));
    }
    if (!(points[i].efficiency() > 0)) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": ", object, ": points[", i,
                                                     "]: efficiency is ", points[i].efficiency(),
                                                     "; it must be more than 0"));
    }
    if (i > 0 && !(points[i].x() > points[i - 1].x())) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": ", object, ": points[", i, "]: x is ",
                                                     points[i].x(), " after ", points[i - 1].x(),
                                                     "; sort the points by x, each once"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCurve(absl::string_view file, absl::string_view object,
                        const google::protobuf::RepeatedPtrField<LatencyPoint>& points) {
  for (int i = 1; i < points.size(); ++i) {
    if (points[i].bytes() > points[i - 1].bytes()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": ", object, "[", i, "]: bytes is ", points[i].bytes(), " after ",
                     points[i - 1].bytes(), "; sort the points by bytes, each once"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckSpec(absl::string_view file, const GpuSpec& spec) {
  const std::vector<std::string> of_cards = {"pcie_generation", "pcie_lanes", "gpudirect_rdma",
                                             "pcie_peer_to_peer"};
  std::vector<std::string> needed = {"memory_gb", "memory_bandwidth_gb_s", "bf16_tflops"};
  if (!spec.processor()) needed.insert(needed.end(), of_cards.begin(), of_cards.end());
  absl::Status status = CheckHardware(file, "GPU spec", spec.name(), spec, needed);
  if (!status.ok()) return status;
  if (spec.processor()) {
    for (const char* name :
         {"pcie_generation", "pcie_lanes", "gpudirect_rdma", "pcie_peer_to_peer", "nvlink_gb_s"}) {
      if (!spec.GetReflection()->HasField(spec, spec.GetDescriptor()->FindFieldByName(name))) {
        continue;
      }
      return absl::InvalidArgumentError(absl::StrCat(file, ": GPU spec ", spec.name(), ": ", name,
                                                     " is given, and a processor has none; leave "
                                                     "it out"));
    }
  }
  if (spec.calibration().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": GPU spec ", spec.name(),
                     ": calibration is missing; name the kernel calibration of the GPU or of a "
                     "sibling"));
  }
  return absl::OkStatus();
}

absl::Status CheckSpec(absl::string_view file, const NicSpec& spec) {
  return CheckHardware(file, "NIC spec", spec.name(), spec,
                       {"rate_gbps", "pcie_generation", "pcie_lanes", "latency_us",
                        "roce_mtu_bytes", "ethernet_mtu_bytes", "rdma"});
}

absl::Status CheckSpec(absl::string_view file, const SwitchSpec& spec) {
  absl::Status status = CheckHardware(file, "switch spec", spec.name(), spec, {"latency_ns"});
  if (!status.ok()) return status;
  const std::string object = absl::StrCat("switch spec ", spec.name());
  if (spec.ports().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        file, ": ", object,
        ": no ports; add ports { prefix: \"port\" count: 32 rate_gbps: 400 } with a source"));
  }
  std::set<std::string> ports;
  for (const SwitchPortGroup& group : spec.ports()) {
    status = CheckObjectName(file, absl::StrCat(object, ": ports"), group.prefix());
    if (!status.ok()) return status;
    for (int i = 1; i <= group.count(); ++i) {
      const std::string port = absl::StrCat(group.prefix(), i);
      if (ports.insert(port).second) continue;
      return absl::InvalidArgumentError(absl::StrCat(file, ": ", object,
                                                     ": two ports are called \"", port,
                                                     "\"; give one group another prefix"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSpec(absl::string_view file, const HostSpec& spec) {
  const std::string object = absl::StrCat("host spec ", spec.name());
  absl::Status status =
      CheckHardware(file, "host spec", spec.name(), spec, {"memory_bandwidth_gb_s"});
  if (!status.ok()) return status;
  if (spec.root_complexes_size() > 1) {
    status = CheckFieldsGiven(file, absl::StrCat(object, " (several root complexes)"), spec,
                              {"root_complex_link_gb_s"});
    if (!status.ok()) return status;
  }
  return PcieTree::Create(file, object, spec).status();
}

absl::Status CheckSpec(absl::string_view file, const KernelCalibration& spec) {
  absl::Status status = CheckTexts(file, spec);
  if (status.ok()) status = CheckObjectName(file, "kernel calibration", spec.name());
  const std::string object = absl::StrCat("kernel calibration ", spec.name());
  if (status.ok()) status = CheckDoubles(file, object, spec);
  for (const GemmCurve& curve : spec.gemms()) {
    const std::string name = absl::StrCat(object, ": gemms ", curve.weight_format());
    if (status.ok()) status = CheckCurve(file, name, curve.points());
  }
  for (const auto& [name, curve] : {std::pair("decode_attention", &spec.decode_attention()),
                                    std::pair("prefill_attention", &spec.prefill_attention())}) {
    if (status.ok()) status = CheckCurve(file, absl::StrCat(object, ": ", name), curve->points());
  }
  if (status.ok()) status = CheckCurve(file, absl::StrCat(object, ": pair_sums"), spec.pair_sums());
  if (status.ok() && !(spec.elementwise_efficiency() > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": ", object, ": elementwise_efficiency is ",
                     spec.elementwise_efficiency(), "; it must be more than 0"));
  }
  return status;
}

absl::Status CheckSpec(absl::string_view file, const NcclCalibration& spec) {
  absl::Status status = CheckTexts(file, spec);
  if (status.ok()) status = CheckObjectName(file, "NCCL calibration", spec.name());
  const std::string object = absl::StrCat("NCCL calibration ", spec.name());
  if (status.ok()) status = CheckDoubles(file, object, spec);
  for (int i = 0; i < spec.sends_size(); ++i) {
    const std::string name = absl::StrCat(object, ": sends[", i, "]: points");
    if (status.ok()) status = CheckCurve(file, name, spec.sends(i).points());
  }
  for (int i = 0; i < spec.collectives_size(); ++i) {
    const std::string name = absl::StrCat(object, ": collectives[", i, "]: step");
    if (status.ok()) status = CheckCurve(file, name, spec.collectives(i).step());
    if (status.ok() && !(spec.collectives(i).rate_fraction() > 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": ", object, ": collectives[", i, "]: rate_fraction is ",
                       spec.collectives(i).rate_fraction(), "; it must be more than 0"));
    }
  }
  if (status.ok() && !(spec.host_staging_gb_s() > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", object, ": host_staging_gb_s is ",
                                                   spec.host_staging_gb_s(),
                                                   "; it must be more than 0"));
  }
  return status;
}

}  // namespace fabricast
