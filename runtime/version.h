#ifndef FABRICAST_RUNTIME_VERSION_H_
#define FABRICAST_RUNTIME_VERSION_H_

namespace fabricast {

// Processes of one pipeline must all be of the same version.
constexpr char kVersion[] = "0.4.0";

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_VERSION_H_
