// What every StageTransport promises (stage_transport.h), as tests. A transport's own test names
// itself, and links this library:
//
//   INSTANTIATE_TEST_SUITE_P(Loopback, TransportConformanceTest,
//                            testing::Values(TransportUnderTest{"loopback", &JoinLoopback}));
#ifndef FABRICAST_RUNTIME_TRANSPORT_CONFORMANCE_TRANSPORT_CONFORMANCE_H_
#define FABRICAST_RUNTIME_TRANSPORT_CONFORMANCE_TRANSPORT_CONFORMANCE_H_

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/transport/stage_transport.h"

namespace fabricast {

struct JoinedEnds {
  // Cuts all links of that stage at once, as if its process had died; may keep what `ends` need
  // alive. Empty for a transport that has no such thing: its tests are skipped.
  std::function<void(int stage)> kill;
  std::vector<std::unique_ptr<StageTransport>> ends;  // by stage, each joined to every other
};

struct TransportUnderTest {
  std::string name;  // letters, digits and '_'
  std::function<JoinedEnds(int stages)> join;
  bool can_kill = false;
};
inline void PrintTo(const TransportUnderTest& transport, std::ostream* out) {
  *out << transport.name;
}

class TransportConformanceTest : public testing::TestWithParam<TransportUnderTest> {
 protected:
  JoinedEnds Join(int stages) const { return GetParam().join(stages); }
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_CONFORMANCE_TRANSPORT_CONFORMANCE_H_
