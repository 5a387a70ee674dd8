#include "topology/field_rules.h"

#include <cmath>
#include <cstdint>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "google/protobuf/descriptor.h"
#include "topology/nearest_name.h"
#include "topology/text_proto.h"

namespace fabricast {
namespace {

using ::google::protobuf::Descriptor;
using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;
using ::google::protobuf::Reflection;

enum class Zero { kAllowed, kRefused };

// The greatest values are generous multiples of what is sold, small enough that a slip of units
// (bytes for GB, MB/s for GB/s, Mbps for Gbps) is caught.
struct Bounds {
  absl::string_view field;
  Zero zero;
  double greatest;
};

constexpr Bounds kBounds[] = {
    {"memory_gb", Zero::kRefused, 1e5},              // a host of 100 TB
    {"memory_bandwidth_gb_s", Zero::kRefused, 1e5},  // 100 TB/s
    {"bf16_tflops", Zero::kRefused, 1e5},
    {"fp8_tflops", Zero::kRefused, 1e5},
    {"power_limit_w", Zero::kRefused, 1e4},
    {"boost_clock_mhz", Zero::kRefused, 1e4},
    {"multiprocessors", Zero::kRefused, 1e4},
    {"pcie_generation", Zero::kRefused, 6},
    {"pcie_lanes", Zero::kRefused, 16},
    {"generation", Zero::kRefused, 6},
    {"lanes", Zero::kRefused, 16},
    {"nvlink_gb_s", Zero::kRefused, 1e5},
    {"sustained_compute_fraction", Zero::kRefused, 1},
    {"rate_gbps", Zero::kRefused, 1e4},
    {"capacity_gbps", Zero::kRefused, 1e6},
    {"latency_us", Zero::kAllowed, 1e4},
    {"latency_ns", Zero::kAllowed, 1e9},  // 1 s: the moon and back is 2.5
    {"roce_mtu_bytes", Zero::kRefused, 4096},
    {"ethernet_mtu_bytes", Zero::kRefused, 65535},
    {"count", Zero::kRefused, 1024},
    {"peer_gb_s", Zero::kRefused, 1e5},
    {"root_complex_link_gb_s", Zero::kRefused, 1e5},
    {"p2p_net_chunk_bytes", Zero::kRefused, 1 << 30},
};

// Numbers that only some values make sense for.
struct Choices {
  absl::string_view field;
  std::vector<int> values;
};

const std::vector<Choices>& AllChoices() {
  static const auto* const choices = new std::vector<Choices>{
      {"pcie_lanes", {1, 2, 4, 8, 16}},
      {"lanes", {1, 2, 4, 8, 16}},
      {"activation_bytes", {2, 4}},
      {"roce_mtu_bytes", {256, 512, 1024, 2048, 4096}},
  };
  return *choices;
}

bool IsNumber(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_DOUBLE:
    case FieldDescriptor::CPPTYPE_FLOAT:
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_INT64:
    case FieldDescriptor::CPPTYPE_UINT32:
    case FieldDescriptor::CPPTYPE_UINT64:
      return true;
    default:
      return false;
  }
}

double NumberOf(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection.GetDouble(message, &field);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return reflection.GetFloat(message, &field);
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection.GetInt32(message, &field);
    case FieldDescriptor::CPPTYPE_INT64:
      return static_cast<double>(reflection.GetInt64(message, &field));
    case FieldDescriptor::CPPTYPE_UINT32:
      return reflection.GetUInt32(message, &field);
    default:
      return static_cast<double>(reflection.GetUInt64(message, &field));
  }
}

absl::Status CheckNumber(absl::string_view file, absl::string_view object, absl::string_view field,
                         double value) {
  for (const Choices& choices : AllChoices()) {
    if (choices.field != field) continue;
    for (const int choice : choices.values) {
      if (value == choice) return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", object, ": ", field, " is ", value,
                                                   "; it is one of ",
                                                   absl::StrJoin(choices.values, ", ")));
  }
  for (const Bounds& bounds : kBounds) {
    if (bounds.field != field) continue;
    const bool low_enough = value <= bounds.greatest;  // false for NaN
    const bool high_enough = bounds.zero == Zero::kAllowed ? value >= 0 : value > 0;
    if (low_enough && high_enough) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: %s: %s is %g; it must be %s and at most %g", file, object, field, value,
        bounds.zero == Zero::kAllowed ? "at least 0" : "more than 0", bounds.greatest));
  }
  // A number whose field has no line above: a line of `kBounds` is missing, not the user's fault.
  if (!std::isfinite(value)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": ", object, ": ", field, " is ", value, "; it must be finite"));
  }
  return absl::OkStatus();
}

bool IsText(absl::string_view text) {
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte == 0 || byte == 0x7F || (byte < 0x20 && c != '\n' && c != '\t')) return false;
  }
  // What the file held was checked; only an escape ("\377") can have made other bytes.
  return FindNonText(text) == absl::string_view::npos;
}

// "slots slot2" if the entry has a name, else "ports[1]".
std::string EntryName(const FieldDescriptor& field, int index, const Message& entry) {
  const FieldDescriptor* name = entry.GetDescriptor()->FindFieldByName("name");
  if (name != nullptr && name->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
    const std::string value = entry.GetReflection()->GetString(entry, name);
    if (!value.empty()) return absl::StrCat(field.name(), " ", value);
  }
  return absl::StrCat(field.name(), "[", index, "]");
}

// The names of the numbers and flags that are set in `message` and below.
void CollectSourced(const Message& message, std::set<std::string>* names) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->name() == "sources" || field->name() == "override") continue;
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      if (!field->is_repeated()) {
        CollectSourced(message.GetReflection()->GetMessage(message, field), names);
        continue;
      }
      for (int i = 0; i < message.GetReflection()->FieldSize(message, field); ++i) {
        CollectSourced(message.GetReflection()->GetRepeatedMessage(message, field, i), names);
      }
    } else if (IsNumber(*field) || field->cpp_type() == FieldDescriptor::CPPTYPE_BOOL) {
      names->insert(field->name());
    }
  }
}

// The names of all fields of `message` and of the messages in it.
void CollectFields(const Descriptor& message, std::set<std::string>* names) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    if (field.name() == "sources" || field.name() == "override") continue;
    names->insert(field.name());
    if (field.message_type() != nullptr) CollectFields(*field.message_type(), names);
  }
}

}  // namespace

absl::Status CheckTexts(absl::string_view file, const Message& message) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const int count = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        const absl::Status status =
            CheckTexts(file, field->is_repeated() ? reflection.GetRepeatedMessage(message, field, i)
                                                  : reflection.GetMessage(message, field));
        if (!status.ok()) return status;
      } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
        const std::string text = field->is_repeated()
                                     ? reflection.GetRepeatedString(message, field, i)
                                     : reflection.GetString(message, field);
        if (IsText(text)) continue;
        return absl::InvalidArgumentError(
            absl::StrCat(file, ": ", message.GetDescriptor()->name(), ": ", field->name(), " is \"",
                         absl::CHexEscape(text.substr(0, 80)), "\"; it must be readable text"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckNumbers(absl::string_view file, absl::string_view object,
                          const Message& message) {
  const Reflection& reflection = *message.GetReflection();
  const Descriptor& descriptor = *message.GetDescriptor();
  for (int i = 0; i < descriptor.field_count(); ++i) {
    const FieldDescriptor& field = *descriptor.field(i);
    if (field.name() == "sources" || field.name() == "override") continue;
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      const int count = field.is_repeated() ? reflection.FieldSize(message, &field)
                                            : (reflection.HasField(message, &field) ? 1 : 0);
      for (int j = 0; j < count; ++j) {
        const Message& entry = field.is_repeated()
                                   ? reflection.GetRepeatedMessage(message, &field, j)
                                   : reflection.GetMessage(message, &field);
        const absl::Status status =
            CheckNumbers(file, absl::StrCat(object, " ", EntryName(field, j, entry)), entry);
        if (!status.ok()) return status;
      }
    } else if (IsNumber(field) && !field.is_repeated()) {
      if (field.has_presence() && !reflection.HasField(message, &field)) continue;
      const absl::Status status = CheckNumber(file, object, field.name(), NumberOf(message, field));
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

absl::Status CheckFieldsGiven(absl::string_view file, absl::string_view object,
                              const Message& message, const std::vector<std::string>& fields) {
  std::vector<std::string> missing;
  for (const std::string& name : fields) {
    const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
    if (field == nullptr || !message.GetReflection()->HasField(message, field)) {
      missing.push_back(name);
    }
  }
  if (missing.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      file, ": ", object, ": ", absl::StrJoin(missing, ", "), missing.size() == 1 ? " is" : " are",
      " missing; give ", missing.size() == 1 ? "it" : "them", " with a source"));
}

absl::Status CheckObjectName(absl::string_view file, absl::string_view what,
                             absl::string_view name) {
  bool good = !name.empty() && name.size() <= 64;
  for (const char c : name) good = good && (absl::ascii_isalnum(c) || c == '_' || c == '-');
  if (good) return absl::OkStatus();
  if (name.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", what, ": name is missing"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(file, ": ", what, ": name is \"", absl::CHexEscape(name.substr(0, 80)),
                   "\"; it must be 1 to 64 letters, digits, '_' or '-'"));
}

absl::Status CheckSources(absl::string_view file, absl::string_view object, const Message& spec) {
  const FieldDescriptor* sources = spec.GetDescriptor()->FindFieldByName("sources");
  std::set<std::string> known;
  CollectFields(*spec.GetDescriptor(), &known);
  std::set<std::string> covered;
  for (int i = 0; i < spec.GetReflection()->FieldSize(spec, sources); ++i) {
    const Message& source = spec.GetReflection()->GetRepeatedMessage(spec, sources, i);
    const Descriptor& type = *source.GetDescriptor();
    const FieldDescriptor* fields = type.FindFieldByName("fields");
    if (source.GetReflection()->GetString(source, type.FindFieldByName("reference")).empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          file, ": ", object, ": sources[", i, "]: reference is missing; say where it is from"));
    }
    for (int j = 0; j < source.GetReflection()->FieldSize(source, fields); ++j) {
      const std::string name = source.GetReflection()->GetRepeatedString(source, fields, j);
      if (known.count(name) == 0) {
        return absl::InvalidArgumentError(
            absl::StrCat(file, ": ", object, ": sources[", i, "]: no field \"",
                         absl::CHexEscape(name.substr(0, 80)), "\"",
                         Suggest(name, std::vector<std::string>(known.begin(), known.end()))));
      }
      covered.insert(name);
    }
  }
  std::set<std::string> needed;
  CollectSourced(spec, &needed);
  std::vector<std::string> missing;
  for (const std::string& name : needed) {
    if (covered.count(name) == 0) missing.push_back(name);
  }
  if (missing.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      file, ": ", object, ": no source for ", absl::StrJoin(missing, ", "), "; add sources { ",
      absl::StrJoin(missing, " ",
                    [](std::string* out, const std::string& name) {
                      absl::StrAppend(out, "fields: \"", name, "\"");
                    }),
      " reference: \"...\" }"));
}

absl::Status CheckOverride(absl::string_view file, absl::string_view object,
                           const Message& override_message) {
  std::vector<const FieldDescriptor*> fields;
  override_message.GetReflection()->ListFields(override_message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->name() == "sources") continue;
    if (field->name() == "name" || field->is_repeated() ||
        field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      return absl::InvalidArgumentError(absl::StrCat(
          file, ": ", object, ": override cannot set ", field->name(), "; write a ",
          override_message.GetDescriptor()->name(), " of its own and name it in spec"));
    }
  }
  return CheckNumbers(file, absl::StrCat(object, " override"), override_message);
}

}  // namespace fabricast
