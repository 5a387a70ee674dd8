#include "topology/override.h"

#include <fnmatch.h>

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "topology/nearest_name.h"
#include "topology/text_proto.h"

namespace fabricast {
namespace {

using ::google::protobuf::Descriptor;
using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;

// Something that an override can name.
struct Object {
  std::string name;
  bool is_link;
  Message* message;
};

std::vector<Object> Objects(Cluster* cluster) {
  std::vector<Object> objects;
  for (Host& host : *cluster->mutable_hosts()) {
    objects.push_back({host.name(), false, &host});
    for (Gpu& gpu : *host.mutable_gpus()) {
      objects.push_back({absl::StrCat(host.name(), ".", gpu.name()), false, &gpu});
    }
    for (Nic& nic : *host.mutable_nics()) {
      objects.push_back({absl::StrCat(host.name(), ".", nic.name()), false, &nic});
    }
  }
  for (Switch& node : *cluster->mutable_switches()) {
    objects.push_back({node.name(), false, &node});
  }
  for (Link& link : *cluster->mutable_links()) {
    const std::string name =
        link.name().empty() ? absl::StrCat(link.a(), "--", link.b()) : link.name();
    objects.push_back({name, true, &link});
  }
  objects.push_back({"communication", false, cluster->mutable_communication()});
  objects.push_back({"cluster", false, cluster});
  return objects;
}

bool Matches(const std::string& pattern, const Object& object) {
  if (pattern == object.name) return true;
  if (object.is_link && absl::StrContains(pattern, "--")) {
    return fnmatch(pattern.c_str(), object.name.c_str(), 0) == 0;
  }
  // FNM_PATHNAME keeps wildcards from crossing '/'.
  const auto as_path = [](const std::string& name) {
    return absl::StrReplaceAll(name, {{".", "/"}});
  };
  return fnmatch(as_path(pattern).c_str(), as_path(object.name).c_str(), FNM_PATHNAME) == 0;
}

bool IsListOfTexts(const FieldDescriptor& field) {
  return field.is_repeated() && field.cpp_type() == FieldDescriptor::CPPTYPE_STRING;
}

bool IsSettable(const FieldDescriptor& field) {
  return (!field.is_repeated() || IsListOfTexts(field)) &&
         field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE && field.name() != "name";
}

// A list of texts is written with spaces between them.
absl::Status SetField(absl::string_view value, const FieldDescriptor& field, Message* message) {
  if (!IsListOfTexts(field)) return SetFieldFromText(value, field, message);
  message->GetReflection()->ClearField(message, &field);
  for (absl::string_view text : absl::StrSplit(value, ' ', absl::SkipEmpty())) {
    message->GetReflection()->AddString(message, &field, std::string(text));
  }
  return absl::OkStatus();
}

// The message in which `field` of `object` is set: the object itself or its `override`; nullptr if
// there is none.
Message* Owner(absl::string_view field, Message* object) {
  const std::string name(field);
  const auto has = [&](const Descriptor& type) {
    const FieldDescriptor* found = type.FindFieldByName(name);
    return found != nullptr && IsSettable(*found);
  };
  const Descriptor& type = *object->GetDescriptor();
  if (has(type)) return object;
  const FieldDescriptor* override_field = type.FindFieldByName("override");
  if (override_field == nullptr || !has(*override_field->message_type())) return nullptr;
  return object->GetReflection()->MutableMessage(object, override_field);
}

// What can be set on `object`.
void CollectSettable(const Descriptor& type, std::set<std::string>* names) {
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    if (field.name() == "override") {
      CollectSettable(*field.message_type(), names);
    } else if (IsSettable(field)) {
      names->insert(field.name());
    }
  }
}

absl::Status Apply(absl::string_view file, const Override& change, std::vector<Object>* objects) {
  const std::string where = absl::StrCat(file, ": override ", change.path, "=", change.value, ": ");
  const std::size_t dot = change.path.rfind('.');
  if (dot == std::string::npos || dot == 0 || dot + 1 == change.path.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, "the path must be \"object.field\", as in node_a.nic0.rate_gbps"));
  }
  const std::string pattern = change.path.substr(0, dot);
  const std::string field = change.path.substr(dot + 1);
  std::set<std::string> settable;
  int matched = 0;
  int changed = 0;
  for (const Object& object : *objects) {
    if (!Matches(pattern, object)) continue;
    ++matched;
    CollectSettable(*object.message->GetDescriptor(), &settable);
    Message* const owner = Owner(field, object.message);
    if (owner == nullptr) continue;
    ++changed;
    const absl::Status status =
        SetField(change.value, *owner->GetDescriptor()->FindFieldByName(field), owner);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, object.name, ": ", std::string(status.message())));
    }
  }
  if (matched == 0) {
    std::vector<std::string> names;
    for (const Object& object : *objects) names.push_back(object.name);
    return absl::InvalidArgumentError(
        absl::StrCat(where, "nothing is called \"", pattern, "\"", Suggest(pattern, names)));
  }
  if (changed == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, pattern, " has no field \"", field, "\" that can be set",
                     Suggest(field, std::vector<std::string>(settable.begin(), settable.end()))));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Override> ParseOverride(absl::string_view text) {
  const std::size_t equals = text.find('=');
  if (equals == absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("override \"", text,
                                                   "\" has no '='; write object.field=value, as in "
                                                   "node_a.nic0.rate_gbps=400"));
  }
  Override result;
  result.path = std::string(absl::StripAsciiWhitespace(text.substr(0, equals)));
  result.value = std::string(absl::StripAsciiWhitespace(text.substr(equals + 1)));
  if (!absl::StrContains(result.path, ".")) {
    return absl::InvalidArgumentError(
        absl::StrCat("override \"", text, "\": the path \"", result.path,
                     "\" must be \"object.field\", as in node_a.nic0.rate_gbps"));
  }
  if (result.value.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("override \"", text, "\" has no value after the '='"));
  }
  return result;
}

absl::Status ApplyOverrides(absl::string_view file, const std::vector<Override>& overrides,
                            Cluster* cluster) {
  if (overrides.empty()) return absl::OkStatus();
  std::vector<Object> objects = Objects(cluster);
  for (const Override& change : overrides) {
    const absl::Status status = Apply(file, change, &objects);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace fabricast
