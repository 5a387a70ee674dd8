#ifndef FABRICAST_RUNTIME_MODEL_SHARED_DATA_H_
#define FABRICAST_RUNTIME_MODEL_SHARED_DATA_H_

#include <string>

namespace fabricast {

// A folder with published model configs and recorded traces that are not part of the project, for
// tests that check against them: $FABRICAST_SHARED_DATA (bazel test
// --test_env=FABRICAST_SHARED_DATA), else ../shared/data of the checkout. Empty if neither is
// there: skip the test.
std::string SharedDataFolder();

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_MODEL_SHARED_DATA_H_
