#include "runtime/transport/loopback.h"

#include "gtest/gtest.h"
#include "runtime/transport/conformance/transport_conformance.h"

namespace fabricast {
namespace {

INSTANTIATE_TEST_SUITE_P(Loopback, TransportConformanceTest,
                         testing::Values(TransportUnderTest{
                             .name = "loopback",
                             .join =
                                 [](int stages) {
                                   return JoinedEnds{.kill = nullptr,
                                                     .ends = MakeLoopbackTransports(stages)};
                                 },
                         }),
                         testing::PrintToStringParamName());

TEST(LoopbackTest, BothEndsOfAMessageEndBeforeTheLaterCallReturns) {
  auto ends = MakeLoopbackTransports(2);
  const std::vector<std::byte> sent(4, std::byte{1});
  std::vector<std::byte> received(4);
  int ended = 0;
  const auto done = [&ended](absl::Status status) { ended += status.ok() ? 1 : 100; };
  ASSERT_TRUE(ends[0]->Send(1, sent, done).ok());
  EXPECT_EQ(ended, 0);
  ASSERT_TRUE(ends[1]->Receive(0, absl::MakeSpan(received), done).ok());
  EXPECT_EQ(ended, 2);
  EXPECT_EQ(received, sent);
}

}  // namespace
}  // namespace fabricast
