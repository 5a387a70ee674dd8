// Reading textproto files written by people: every error names file, line, field and mend.
#ifndef FABRICAST_TOPOLOGY_TEXT_PROTO_H_
#define FABRICAST_TOPOLOGY_TEXT_PROTO_H_

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"

namespace fabricast {

// Larger texts are refused before they are looked at. A cluster of 16 hosts with 8 GPUs each has 40
// kB.
inline constexpr std::size_t kMaxTextProtoBytes = 4 << 20;

// The text of a file. Errors: kNotFound, kInvalidArgument for a directory or for more than
// kMaxTextProtoBytes (which are not read), kPermissionDenied, kUnavailable.
absl::StatusOr<std::string> ReadTextFile(const std::string& file);

// The position of the first byte that no text file has: a NUL byte or one that is not UTF-8. npos
// if there is none.
std::size_t FindNonText(absl::string_view text);

// The message that the first line declares: "fabricast.GpuSpec" for "# proto-message:
// fabricast.GpuSpec"; empty if the first line declares none.
absl::string_view DeclaredMessage(absl::string_view text);

// Parses `text` into `message`, which is cleared first. kInvalidArgument, with `file`:line:column,
// for text that is empty, too large, binary (NUL bytes, invalid UTF-8), declared as another
// message, or does not fit the message.
absl::Status ParseTextProto(absl::string_view file, absl::string_view text,
                            google::protobuf::Message* message);

// Parses `value` as the textproto value of the singular field `field` of `message` and sets it. A
// string needs no quotes, an enum value no prefix ("RDMA" is not enough for TRANSPORT_NCCL_RDMA,
// "NCCL_RDMA" is). The error says what the field takes.
absl::Status SetFieldFromText(absl::string_view value,
                              const google::protobuf::FieldDescriptor& field,
                              google::protobuf::Message* message);

// What a field takes, for messages: "a number", "a whole number", "true or false", "a text", "one
// of A, B, C".
std::string FieldTypeInWords(const google::protobuf::FieldDescriptor& field);

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_TEXT_PROTO_H_
