#include "topology/text_proto.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "topology/nearest_name.h"

namespace fabricast {
namespace {

using ::google::protobuf::Descriptor;
using ::google::protobuf::EnumDescriptor;
using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;
using ::google::protobuf::TextFormat;

std::vector<std::string> FieldNames(const Descriptor& message) {
  std::vector<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  return names;
}

// protobuf's 'Message type "fabricast.GpuSpec" has no field named "memory".' with the mend.
std::string ExplainUnknownField(const std::string& message) {
  static constexpr absl::string_view kType = "Message type \"";
  static constexpr absl::string_view kField = "\" has no field named \"";
  absl::string_view rest = message;
  if (!absl::ConsumePrefix(&rest, kType)) return message;
  const std::size_t middle = rest.find(kField);
  if (middle == absl::string_view::npos) return message;
  const absl::string_view type = rest.substr(0, middle);
  absl::string_view field = rest.substr(middle + kField.size());
  field = field.substr(0, field.find('"'));
  const Descriptor* descriptor =
      google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName(std::string(type));
  if (descriptor == nullptr) return message;
  return absl::StrCat(descriptor->name(), " has no field \"", field, "\"",
                      Suggest(field, FieldNames(*descriptor)));
}

// Keeps the first error and counts the others.
class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, int column, const std::string& message) override {
    if (count_++ > 0) return;
    line_ = line;
    column_ = column;
    message_ = message;
  }

  // "12:7: message", counted from 1 as editors do.
  std::string Text() const {
    std::string text;
    if (line_ >= 0) absl::StrAppend(&text, line_ + 1, ":", column_ + 1, ": ");
    absl::StrAppend(&text, ExplainUnknownField(message_));
    if (count_ > 1) absl::StrAppend(&text, " (and ", count_ - 1, " more)");
    return text;
  }
  const std::string& message() const { return message_; }

 private:
  int count_ = 0;
  int line_ = -1;
  int column_ = 0;
  std::string message_;
};

// The length of the UTF-8 sequence at `text`'s beginning, 0 if it is not one.
std::size_t Utf8Length(absl::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  std::size_t length = 0;
  // The second byte's range excludes overlong forms, surrogates and what is beyond U+10FFFF.
  unsigned char low = 0x80, high = 0xBF;
  if (first >= 0xC2 && first <= 0xDF) length = 2;
  if (first >= 0xE0 && first <= 0xEF) length = 3;
  if (first >= 0xF0 && first <= 0xF4) length = 4;
  if (first == 0xE0) low = 0xA0;
  if (first == 0xED) high = 0x9F;
  if (first == 0xF0) low = 0x90;
  if (first == 0xF4) high = 0x8F;
  if (length == 0 || text.size() < length || byte(1) < low || byte(1) > high) return 0;
  for (std::size_t i = 2; i < length; ++i) {
    if (byte(i) < 0x80 || byte(i) > 0xBF) return 0;
  }
  return length;
}

// OK if `text` is one that a person can have written.
absl::Status CheckIsText(absl::string_view file, absl::string_view text) {
  if (text.size() > kMaxTextProtoBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        file, ": too large: ", text.size(), " bytes; at most ", kMaxTextProtoBytes, " are read"));
  }
  if (absl::StripAsciiWhitespace(text).empty()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": empty; a textproto is expected"));
  }
  const std::size_t at = FindNonText(text);
  if (at == absl::string_view::npos) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(file, ": binary: ", text[at] == '\0' ? "a NUL byte" : "invalid UTF-8",
                   " at byte ", at, "; a textproto is expected"));
}

std::vector<std::string> EnumNames(const EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) {
    if (type.value(i)->number() != 0) names.push_back(type.value(i)->name());
  }
  return names;
}

// The value's full name if `value` is the end of exactly one, else `value`.
std::string CompleteEnumName(absl::string_view value, const EnumDescriptor& type) {
  const std::string upper = absl::AsciiStrToUpper(value);
  // TRANSPORT_UNSPECIFIED, by custom, shows the prefix that all values have.
  absl::string_view prefix = type.FindValueByNumber(0)->name();
  if (!absl::ConsumeSuffix(&prefix, "UNSPECIFIED")) return std::string(value);
  const std::string full = absl::StrCat(prefix, upper);
  return type.FindValueByName(full) != nullptr ? full : std::string(value);
}

bool IsQuoted(absl::string_view value) {
  return value.size() >= 2 && (value.front() == '"' || value.front() == '\'') &&
         value.back() == value.front();
}

}  // namespace

absl::StatusOr<std::string> ReadTextFile(const std::string& file) {
  struct stat status;
  if (stat(file.c_str(), &status) != 0) {
    const int error = errno;
    if (error == EACCES) {
      return absl::PermissionDeniedError(absl::StrCat(file, ": may not be read"));
    }
    return absl::NotFoundError(absl::StrCat(file, ": ", std::strerror(error)));
  }
  if (S_ISDIR(status.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": is a directory; name a textproto file in it"));
  }
  if (static_cast<std::size_t>(std::max<off_t>(status.st_size, 0)) > kMaxTextProtoBytes) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": too large: ", status.st_size,
                                                   " bytes; at most ", kMaxTextProtoBytes,
                                                   " are read"));
  }
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> stream(std::fopen(file.c_str(), "rb"),
                                                         std::fclose);
  if (stream == nullptr) {
    const int error = errno;
    if (error == EACCES) {
      return absl::PermissionDeniedError(absl::StrCat(file, ": may not be read"));
    }
    return absl::UnavailableError(absl::StrCat(file, ": ", std::strerror(error)));
  }
  // A pipe or device has no size beforehand: read at most one byte more than is allowed.
  std::string text;
  char buffer[1 << 16];
  while (text.size() <= kMaxTextProtoBytes) {
    const std::size_t count = std::fread(buffer, 1, sizeof(buffer), stream.get());
    if (count == 0) break;
    text.append(buffer, count);
  }
  if (std::ferror(stream.get()) != 0) {
    return absl::UnavailableError(absl::StrCat(file, ": ", std::strerror(errno)));
  }
  if (text.size() > kMaxTextProtoBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": too large: more than ", kMaxTextProtoBytes, " bytes"));
  }
  return text;
}

std::size_t FindNonText(absl::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = text[at] == '\0' ? 0 : Utf8Length(text.substr(at));
    if (length == 0) return at;
    at += length;
  }
  return absl::string_view::npos;
}

absl::string_view DeclaredMessage(absl::string_view text) {
  absl::string_view line = text.substr(0, text.find('\n'));
  line = absl::StripAsciiWhitespace(line);
  if (!absl::ConsumePrefix(&line, "#")) return "";
  line = absl::StripAsciiWhitespace(line);
  if (!absl::ConsumePrefix(&line, "proto-message:")) return "";
  return absl::StripAsciiWhitespace(line);
}

absl::Status ParseTextProto(absl::string_view file, absl::string_view text, Message* message) {
  message->Clear();
  if (absl::Status status = CheckIsText(file, text); !status.ok()) return status;
  const absl::string_view declared = DeclaredMessage(text);
  const std::string& wanted = message->GetDescriptor()->full_name();
  if (!declared.empty() && declared != wanted) {
    return absl::InvalidArgumentError(absl::StrCat(file, ":1: the file is a ", declared,
                                                   " by its first line; a ", wanted,
                                                   " is expected here"));
  }
  FirstError error;
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  parser.SetRecursionLimit(20);
  if (!parser.ParseFromString(std::string(text), message)) {
    return absl::InvalidArgumentError(absl::StrCat(file, ":", error.Text()));
  }
  return absl::OkStatus();
}

std::string FieldTypeInWords(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_DOUBLE:
    case FieldDescriptor::CPPTYPE_FLOAT:
      return "a number";
    case FieldDescriptor::CPPTYPE_STRING:
      return "a text";
    case FieldDescriptor::CPPTYPE_ENUM:
      return absl::StrCat("one of ", absl::StrJoin(EnumNames(*field.enum_type()), ", "));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return absl::StrCat("a ", field.message_type()->name());
    default:
      return "a whole number";
  }
}

absl::Status SetFieldFromText(absl::string_view value, const FieldDescriptor& field,
                              Message* message) {
  std::string text(value);
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING && !IsQuoted(value)) {
    text = absl::StrCat("\"", absl::CEscape(value), "\"");
  } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
    text = CompleteEnumName(value, *field.enum_type());
  }
  FirstError error;
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  if (text.empty() || !parser.ParseFieldValueFromString(text, &field, message)) {
    return absl::InvalidArgumentError(absl::StrCat(field.name(), " takes ", FieldTypeInWords(field),
                                                   ", not \"", absl::CEscape(value.substr(0, 80)),
                                                   "\""));
  }
  return absl::OkStatus();
}

}  // namespace fabricast
