#include "runtime/metrics/metric_path.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace fabricast {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

bool IsNumber(const FieldDescriptor& field) {
  return field.cpp_type() != FieldDescriptor::CPPTYPE_STRING &&
         field.cpp_type() != FieldDescriptor::CPPTYPE_ENUM;
}

std::string FieldsOf(const Descriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    if (!IsNumber(field)) continue;
    names.push_back(field.is_repeated() ? absl::StrCat(field.name(), "[i]") : field.name());
  }
  return absl::StrJoin(names, ", ");
}

struct Step {
  absl::string_view name;
  int index = -1;  // -1: no index
};

// "stages[1]" -> {stages, 1}. False if malformed.
bool ParseStep(absl::string_view text, Step& step) {
  const size_t open = text.find('[');
  step.name = text.substr(0, open);
  if (open == absl::string_view::npos) return true;
  if (text.back() != ']') return false;
  return absl::SimpleAtoi(text.substr(open + 1, text.size() - open - 2), &step.index) &&
         step.index >= 0;
}

double Number(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection.GetInt32(message, &field);
    case FieldDescriptor::CPPTYPE_INT64:
      return static_cast<double>(reflection.GetInt64(message, &field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return static_cast<double>(reflection.GetUInt64(message, &field));
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.GetBool(message, &field) ? 1 : 0;
    default:
      return reflection.GetDouble(message, &field);
  }
}

}  // namespace

absl::Status CheckMetricPath(absl::string_view path) {
  const Descriptor* type = Result::descriptor();
  const std::vector<absl::string_view> parts = absl::StrSplit(path, '.');
  for (size_t i = 0; i < parts.size(); ++i) {
    Step step;
    const FieldDescriptor* field =
        ParseStep(parts[i], step) ? type->FindFieldByName(std::string(step.name)) : nullptr;
    if (field == nullptr || !IsNumber(*field) || field->is_repeated() != (step.index >= 0)) {
      return absl::InvalidArgumentError(absl::StrCat("no metric is called '", path, "': at '",
                                                     parts[i], "' use one of ", FieldsOf(*type)));
    }
    const bool last = i + 1 == parts.size();
    const bool group = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (last && group) {
      return absl::InvalidArgumentError(absl::StrCat("metric '", path, "' is a group: add one of ",
                                                     FieldsOf(*field->message_type())));
    }
    if (!last && !group) {
      return absl::InvalidArgumentError(
          absl::StrCat("metric '", path, "': '", parts[i], "' is a number and has no fields"));
    }
    if (group) type = field->message_type();
  }
  return absl::OkStatus();
}

absl::StatusOr<double> MetricAt(const Result& result, absl::string_view path) {
  if (absl::Status status = CheckMetricPath(path); !status.ok()) return status;
  const Message* message = &result;
  const std::vector<absl::string_view> parts = absl::StrSplit(path, '.');
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    const Reflection& reflection = *message->GetReflection();
    Step step;
    ParseStep(parts[i], step);
    const FieldDescriptor* field =
        message->GetDescriptor()->FindFieldByName(std::string(step.name));
    if (!field->is_repeated()) {
      message = &reflection.GetMessage(*message, field);
    } else if (step.index < reflection.FieldSize(*message, field)) {
      message = &reflection.GetRepeatedMessage(*message, field, step.index);
    } else {
      return absl::OutOfRangeError(absl::StrCat("metric '", path, "': the run has ",
                                                reflection.FieldSize(*message, field), " ",
                                                step.name, ", counted from 0"));
    }
  }
  const FieldDescriptor* field =
      message->GetDescriptor()->FindFieldByName(std::string(parts.back()));
  if (field->has_presence() && !message->GetReflection()->HasField(*message, field)) {
    return absl::NotFoundError(absl::StrCat("metric '", path, "': this run has no value for it"));
  }
  return Number(*message, *field);
}

std::vector<std::string> ComparedMetrics(const Result& result) {
  std::vector<std::string> paths;
  for (absl::string_view distribution : {"ttft", "tpot", "itl", "e2e", "queue_wait"}) {
    for (absl::string_view statistic : {"mean", "p50", "p90", "p99"}) {
      paths.push_back(absl::StrCat(distribution, ".", statistic));
    }
  }
  for (absl::string_view name : {"duration_s", "output_tokens_per_s", "total_tokens_per_s",
                                 "requests_per_s", "kv_peak_fraction"}) {
    paths.push_back(std::string(name));
  }
  for (int s = 0; s < result.stages_size(); ++s) {
    paths.push_back(absl::StrCat("stages[", s, "].busy_fraction"));
    paths.push_back(absl::StrCat("stages[", s, "].bubble_fraction"));
  }
  for (int h = 0; h < result.hops_size(); ++h) {
    paths.push_back(absl::StrCat("hops[", h, "].wire_s"));
    paths.push_back(absl::StrCat("hops[", h, "].exposed_s"));
  }
  return paths;
}

}  // namespace fabricast
