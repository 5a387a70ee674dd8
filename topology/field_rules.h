// What every number and name of a hardware description must keep to, whichever message it stands
// in.
#ifndef FABRICAST_TOPOLOGY_FIELD_RULES_H_
#define FABRICAST_TOPOLOGY_FIELD_RULES_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"

namespace fabricast {

// Every text of `message` and of the messages in it is readable: UTF-8 without control characters.
// (An escape such as "\377" can smuggle in what the file itself could not hold.)
absl::Status CheckTexts(absl::string_view file, const google::protobuf::Message& message);

// Checks every number of `message` that is set, and of the messages in it, against the bounds of
// its field's name. Numbers without presence (`count`, `lanes`, ... of a list's entries) must be
// given. `object` names the message in errors: "c.txtpb: node_a.nic0:
// rate_gbps is 0; it must be more than 0 and at most 10000". Fields called `override` and `sources`
// are left out.
absl::Status CheckNumbers(absl::string_view file, absl::string_view object,
                          const google::protobuf::Message& message);

// OK if all of `fields` (of `message`'s own) are set.
absl::Status CheckFieldsGiven(absl::string_view file, absl::string_view object,
                              const google::protobuf::Message& message,
                              const std::vector<std::string>& fields);

// OK if `name` can name an object: 1 to 64 letters, digits, '_' and '-', so that "host.gpu" and
// wildcards stay readable.
absl::Status CheckObjectName(absl::string_view file, absl::string_view what,
                             absl::string_view name);

// For specs: every number and flag that is set, also in nested messages, is named by a `sources`
// entry; every entry has a reference and names only fields that exist.
absl::Status CheckSources(absl::string_view file, absl::string_view object,
                          const google::protobuf::Message& spec);

// For `override`s: sets only single numbers, flags and texts, and not `name`. `sources` are
// welcome.
absl::Status CheckOverride(absl::string_view file, absl::string_view object,
                           const google::protobuf::Message& override_message);

}  // namespace fabricast

#endif  // FABRICAST_TOPOLOGY_FIELD_RULES_H_
