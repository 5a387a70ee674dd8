#include "runtime/transport/loopback.h"

#include <atomic>
#include <cstring>
#include <numeric>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::byte> Bytes(size_t size, int seed) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 7 + seed);
  return bytes;
}

// Keeps the outcome of one call; "" while it has none.
struct Outcome {
  std::string text;
  StageTransport::Done done() {
    return
        [this](absl::Status status) { text += status.ok() ? "OK" : std::string(status.message()); };
  }
};

TEST(LoopbackTest, AMessageArrivesWhicheverEndComesFirst) {
  auto ends = MakeLoopbackTransports(2);
  for (const bool send_first : {true, false}) {
    const std::vector<std::byte> sent = Bytes(1000, send_first);
    std::vector<std::byte> received(1000);
    Outcome send, receive;
    if (send_first) {
      ASSERT_TRUE(ends[0]->Send(1, sent, send.done()).ok());
    }
    ASSERT_TRUE(ends[1]->Receive(0, absl::MakeSpan(received), receive.done()).ok());
    if (!send_first) {
      EXPECT_EQ(receive.text, "");
      ASSERT_TRUE(ends[0]->Send(1, sent, send.done()).ok());
    }
    EXPECT_EQ(send.text, "OK");
    EXPECT_EQ(receive.text, "OK");
    EXPECT_EQ(received, sent);
  }
}

TEST(LoopbackTest, LinksDoNotMixUp) {
  auto ends = MakeLoopbackTransports(3);
  std::vector<std::byte> from_0(1), from_1(1), back(1);
  const std::vector<std::byte> a = {std::byte{1}}, b = {std::byte{2}}, c = {std::byte{3}};
  Outcome outcome;
  ASSERT_TRUE(ends[0]->Send(2, a, outcome.done()).ok());
  ASSERT_TRUE(ends[1]->Send(2, b, outcome.done()).ok());
  ASSERT_TRUE(ends[2]->Send(0, c, outcome.done()).ok());
  ASSERT_TRUE(ends[2]->Receive(1, absl::MakeSpan(from_1), outcome.done()).ok());
  ASSERT_TRUE(ends[2]->Receive(0, absl::MakeSpan(from_0), outcome.done()).ok());
  ASSERT_TRUE(ends[0]->Receive(2, absl::MakeSpan(back), outcome.done()).ok());
  EXPECT_EQ(outcome.text, "OKOKOKOKOKOK");
  EXPECT_THAT(from_0, ElementsAre(std::byte{1}));
  EXPECT_THAT(from_1, ElementsAre(std::byte{2}));
  EXPECT_THAT(back, ElementsAre(std::byte{3}));
}

TEST(LoopbackTest, AnEmptyMessageIsAMessage) {
  auto ends = MakeLoopbackTransports(2);
  Outcome send, receive;
  ASSERT_TRUE(ends[0]->Send(1, {}, send.done()).ok());
  EXPECT_EQ(send.text, "");
  ASSERT_TRUE(ends[1]->Receive(0, {}, receive.done()).ok());
  EXPECT_EQ(send.text, "OK");
  EXPECT_EQ(receive.text, "OK");
}

TEST(LoopbackTest, AMessageOfAnotherLengthIsAnErrorAtBothEnds) {
  auto ends = MakeLoopbackTransports(2);
  std::vector<std::byte> received(9, std::byte{42});
  const std::vector<std::byte> sent = Bytes(10, 0);
  Outcome send, receive;
  ASSERT_TRUE(ends[0]->Send(1, sent, send.done()).ok());
  ASSERT_TRUE(ends[1]->Receive(0, absl::MakeSpan(received), receive.done()).ok());
  EXPECT_THAT(receive.text, HasSubstr("10 bytes came where 9 were expected"));
  EXPECT_THAT(send.text, HasSubstr("10 bytes came where 9 were expected"));
  EXPECT_EQ(received, std::vector<std::byte>(9, std::byte{42}));
}

TEST(LoopbackTest, ThereIsNoLinkToOneselfOrBeyond) {
  auto ends = MakeLoopbackTransports(2);
  Outcome outcome;
  for (const int peer : {-1, 0, 2}) {
    EXPECT_EQ(ends[0]->Send(peer, {}, outcome.done()).code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(ends[0]->Receive(peer, {}, outcome.done()).code(), absl::StatusCode::kNotFound);
  }
  EXPECT_EQ(outcome.text, "");
}

TEST(LoopbackTest, CloseCancelsWhatIsPendingAtBothEndsAndLeavesOthersAlone) {
  auto ends = MakeLoopbackTransports(3);
  Outcome receive_at_1, send_from_2, send_0_to_2;
  const std::vector<std::byte> sent = Bytes(4, 0);
  std::vector<std::byte> buffer(4);
  ASSERT_TRUE(ends[1]->Receive(0, absl::MakeSpan(buffer), receive_at_1.done()).ok());
  ASSERT_TRUE(ends[2]->Send(1, sent, send_from_2.done()).ok());
  ASSERT_TRUE(ends[0]->Send(2, sent, send_0_to_2.done()).ok());
  ends[1]->Close();
  ends[1]->Close();
  EXPECT_EQ(receive_at_1.text, "closed");
  EXPECT_EQ(send_from_2.text, "closed");
  EXPECT_EQ(send_0_to_2.text, "");
  Outcome none;
  EXPECT_EQ(ends[0]->Send(1, {}, none.done()).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ends[1]->Receive(0, {}, none.done()).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(none.text, "");
  Outcome receive;
  ASSERT_TRUE(ends[2]->Receive(0, absl::MakeSpan(buffer), receive.done()).ok());
  EXPECT_EQ(receive.text, "OK");
}

TEST(LoopbackTest, MessagesOfTwoThreadsArriveWholeAndInOrder) {
  constexpr int kMessages = 20'000;
  auto ends = MakeLoopbackTransports(2);
  std::vector<int> sent(kMessages), received(kMessages, -1);
  std::iota(sent.begin(), sent.end(), 0);
  std::vector<int> order;  // `done` of one link never overlap
  std::atomic<int> ended = 0;
  std::thread sender([&] {
    for (int& value : sent) {
      const auto* bytes = reinterpret_cast<const std::byte*>(&value);
      ASSERT_TRUE(
          ends[0]
              ->Send(1, absl::MakeConstSpan(bytes, sizeof(int)), [&](absl::Status) { ++ended; })
              .ok());
    }
  });
  std::thread receiver([&] {
    for (int& value : received) {
      auto* bytes = reinterpret_cast<std::byte*>(&value);
      ASSERT_TRUE(ends[1]
                      ->Receive(0, absl::MakeSpan(bytes, sizeof(int)),
                                [&](absl::Status) {
                                  order.push_back(value);
                                  ++ended;
                                })
                      .ok());
    }
  });
  sender.join();
  receiver.join();
  EXPECT_EQ(ended, 2 * kMessages);
  EXPECT_EQ(received, sent);
  EXPECT_EQ(order, sent);
}

}  // namespace
}  // namespace fabricast
