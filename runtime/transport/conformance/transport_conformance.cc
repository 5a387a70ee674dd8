#include "runtime/transport/conformance/transport_conformance.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "runtime/transport/conformance/outcome.h"

namespace fabricast {
namespace {

using ::testing::AnyOf;
using ::testing::Each;
using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

constexpr size_t kMiB = size_t{1} << 20;
constexpr absl::StatusCode kCancelled = absl::StatusCode::kCancelled;
constexpr absl::StatusCode kInvalidArgument = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kOk = absl::StatusCode::kOk;
constexpr absl::StatusCode kUnavailable = absl::StatusCode::kUnavailable;

// Without a period that a misplaced piece could hide in.
Bytes RandomBytes(size_t size, uint64_t seed) {
  Bytes bytes(size);
  std::mt19937_64 random(seed);
  size_t at = 0;
  for (; at + 8 <= size; at += 8) {
    const uint64_t word = random();
    std::memcpy(bytes.data() + at, &word, 8);
  }
  for (; at < size; ++at) bytes[at] = static_cast<std::byte>(random());
  return bytes;
}

bool Same(absl::Span<const std::byte> a, absl::Span<const std::byte> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

bool AllAre(std::byte value, absl::Span<const std::byte> bytes) {
  return bytes.empty() ||
         (bytes.front() == value && Same(bytes.subspan(1), bytes.first(bytes.size() - 1)));
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

std::vector<absl::StatusCode> Codes(const Outcome& outcome) {
  std::vector<absl::StatusCode> codes;
  for (const absl::Status& status : outcome.statuses()) codes.push_back(status.code());
  return codes;
}

// Exchanges one message and checks it.
void ExpectWorks(JoinedEnds& joined, int from, int to) {
  const Bytes sent = RandomBytes(1000, 17 * from + to);
  Bytes received(sent.size());
  Outcome send, receive;
  ASSERT_TRUE(joined.ends[from]->Send(to, sent, send.done()).ok());
  ASSERT_TRUE(joined.ends[to]->Receive(from, absl::MakeSpan(received), receive.done()).ok());
  ASSERT_TRUE(receive.Wait().ok()) << receive.Wait();
  ASSERT_TRUE(send.Wait().ok()) << send.Wait();
  EXPECT_EQ(received, sent);
}

TEST_P(TransportConformanceTest, AMessageArrivesWhicheverEndComesFirst) {
  JoinedEnds joined = Join(2);
  for (const bool send_first : {true, false}) {
    const Bytes sent = RandomBytes(1000, send_first);
    Bytes received(1000);
    Outcome send, receive;
    if (send_first) {
      ASSERT_TRUE(joined.ends[0]->Send(1, sent, send.done()).ok());
    }
    ASSERT_TRUE(joined.ends[1]->Receive(0, absl::MakeSpan(received), receive.done()).ok());
    if (!send_first) {
      EXPECT_EQ(receive.times(), 0u);
      ASSERT_TRUE(joined.ends[0]->Send(1, sent, send.done()).ok());
    }
    EXPECT_TRUE(receive.Wait().ok()) << receive.Wait();
    EXPECT_TRUE(send.Wait().ok()) << send.Wait();
    EXPECT_EQ(received, sent);
  }
}

TEST_P(TransportConformanceTest, MessagesOfEverySizeArriveAsTheyWere) {
  JoinedEnds joined = Join(2);
  std::vector<size_t> sizes = {0, 1, 2, 3, 7, 31, 33, 1000, 65'537, 3 * kMiB + 1};
  // One less, as many and one more than powers of two: wherever buffers and segments end.
  for (size_t power = 64; power <= 4 * kMiB; power *= 2) {
    for (const size_t size : {power - 33, power - 32, power - 31, power - 1, power, power + 1}) {
      sizes.push_back(size);
    }
  }
  const Bytes source = RandomBytes(sizes.size() + 4 * kMiB + 1, 1);
  for (size_t i = 0; i < sizes.size(); ++i) {
    const absl::Span<const std::byte> sent = absl::MakeConstSpan(source).subspan(i, sizes[i]);
    // A byte beyond either end must stay.
    Bytes received(sizes[i] + 2, std::byte{0x5a});
    Outcome send, receive;
    ASSERT_TRUE(joined.ends[1]
                    ->Receive(0, absl::MakeSpan(received).subspan(1, sizes[i]), receive.done())
                    .ok());
    ASSERT_TRUE(joined.ends[0]->Send(1, sent, send.done()).ok());
    ASSERT_TRUE(receive.Wait().ok()) << sizes[i] << ": " << receive.Wait();
    ASSERT_TRUE(send.Wait().ok()) << sizes[i] << ": " << send.Wait();
    ASSERT_TRUE(Same(absl::MakeConstSpan(received).subspan(1, sizes[i]), sent)) << sizes[i];
    ASSERT_EQ(received.front(), std::byte{0x5a}) << sizes[i];
    ASSERT_EQ(received.back(), std::byte{0x5a}) << sizes[i];
  }
}

TEST_P(TransportConformanceTest, ALongMessageArrivesAsItWasInBothDirectionsAtOnce) {
  JoinedEnds joined = Join(2);
  const Bytes there = RandomBytes(64 * kMiB, 1);
  const Bytes back = RandomBytes(64 * kMiB - 12'345, 2);
  Bytes at_1(there.size()), at_0(back.size());
  Outcome outcome;
  ASSERT_TRUE(joined.ends[0]->Send(1, there, outcome.done()).ok());
  ASSERT_TRUE(joined.ends[1]->Send(0, back, outcome.done()).ok());
  ASSERT_TRUE(joined.ends[1]->Receive(0, absl::MakeSpan(at_1), outcome.done()).ok());
  ASSERT_TRUE(joined.ends[0]->Receive(1, absl::MakeSpan(at_0), outcome.done()).ok());
  ASSERT_TRUE(outcome.Wait(4).ok()) << outcome.Wait(4);
  EXPECT_TRUE(Same(at_1, there));
  EXPECT_TRUE(Same(at_0, back));
}

TEST_P(TransportConformanceTest, AnEmptyMessageIsAMessage) {
  JoinedEnds joined = Join(2);
  const Bytes one = {std::byte{1}};
  Bytes received(1);
  Outcome receives;
  ASSERT_TRUE(joined.ends[1]->Receive(0, {}, receives.done()).ok());
  ASSERT_TRUE(joined.ends[1]->Receive(0, absl::MakeSpan(received), receives.done()).ok());
  ASSERT_TRUE(joined.ends[1]->Receive(0, {}, receives.done()).ok());
  EXPECT_EQ(receives.times(), 0u);
  Outcome sends;
  ASSERT_TRUE(joined.ends[0]->Send(1, {}, sends.done()).ok());
  EXPECT_TRUE(receives.Wait(1).ok());
  ASSERT_TRUE(joined.ends[0]->Send(1, one, sends.done()).ok());
  EXPECT_TRUE(receives.Wait(2).ok());
  EXPECT_EQ(received, one);
  ASSERT_TRUE(joined.ends[0]->Send(1, {}, sends.done()).ok());
  EXPECT_TRUE(receives.Wait(3).ok());
  EXPECT_TRUE(sends.Wait(3).ok());
}

TEST_P(TransportConformanceTest, MessagesOfTwoThreadsArriveWholeAndInOrder) {
  constexpr uint32_t kMessages = 20'000;
  JoinedEnds joined = Join(2);
  std::vector<uint32_t> sent(kMessages), received(kMessages);
  std::vector<uint32_t> sends_ended, receives_ended;  // `done`s of a direction never overlap
  Outcome sends, receives;
  std::thread sender([&] {
    for (uint32_t i = 0; i < kMessages; ++i) {
      sent[i] = i * 2'654'435'761u;
      const auto* bytes = reinterpret_cast<const std::byte*>(&sent[i]);
      ASSERT_TRUE(joined.ends[0]
                      ->Send(1, absl::MakeConstSpan(bytes, 4),
                             [&, i, done = sends.done()](absl::Status status) mutable {
                               sends_ended.push_back(i);
                               std::move(done)(status);
                             })
                      .ok());
    }
  });
  std::thread receiver([&] {
    for (uint32_t i = 0; i < kMessages; ++i) {
      auto* bytes = reinterpret_cast<std::byte*>(&received[i]);
      ASSERT_TRUE(joined.ends[1]
                      ->Receive(0, absl::MakeSpan(bytes, 4),
                                [&, i, done = receives.done()](absl::Status status) mutable {
                                  receives_ended.push_back(i);
                                  std::move(done)(status);
                                })
                      .ok());
    }
  });
  sender.join();
  receiver.join();
  EXPECT_TRUE(sends.Wait(kMessages).ok()) << sends.Wait(kMessages);
  EXPECT_TRUE(receives.Wait(kMessages).ok()) << receives.Wait(kMessages);
  EXPECT_EQ(received, sent);
  std::vector<uint32_t> in_order(kMessages);
  for (uint32_t i = 0; i < kMessages; ++i) in_order[i] = i;
  EXPECT_EQ(sends_ended, in_order);
  EXPECT_EQ(receives_ended, in_order);
}

TEST_P(TransportConformanceTest, MessagesOfManySizesStayInOrder) {
  constexpr int kMessages = 300;
  JoinedEnds joined = Join(2);
  std::mt19937 random(5);
  const Bytes source = RandomBytes(2 * kMiB, 6);
  std::vector<absl::Span<const std::byte>> sent;
  std::vector<Bytes> received;
  for (int i = 0; i < kMessages; ++i) {
    // Sizes of all magnitudes, so that long and short ones follow one another.
    const size_t size = random() % (size_t{1} << (random() % 21));
    sent.push_back(absl::MakeConstSpan(source).subspan(random() % kMiB, size));
    received.emplace_back(size);
  }
  std::vector<int> order;
  Outcome sends, receives;
  std::thread sender([&] {
    for (const absl::Span<const std::byte> bytes : sent) {
      ASSERT_TRUE(joined.ends[0]->Send(1, bytes, sends.done()).ok());
    }
  });
  for (int i = 0; i < kMessages; ++i) {
    ASSERT_TRUE(joined.ends[1]
                    ->Receive(0, absl::MakeSpan(received[i]),
                              [&, i, done = receives.done()](absl::Status status) mutable {
                                order.push_back(i);
                                std::move(done)(status);
                              })
                    .ok());
  }
  sender.join();
  ASSERT_TRUE(receives.Wait(kMessages).ok()) << receives.Wait(kMessages);
  ASSERT_TRUE(sends.Wait(kMessages).ok()) << sends.Wait(kMessages);
  for (int i = 0; i < kMessages; ++i) {
    EXPECT_EQ(order[i], i);
    EXPECT_TRUE(Same(received[i], sent[i])) << i;
  }
}

TEST_P(TransportConformanceTest, LinksDoNotMixUp) {
  constexpr int kStages = 3;
  constexpr int kMessages = 200;
  JoinedEnds joined = Join(kStages);
  // [from][to][message]
  std::vector<std::vector<std::vector<Bytes>>> sent, received;
  for (int from = 0; from < kStages; ++from) {
    sent.emplace_back(kStages);
    received.emplace_back(kStages);
    for (int to = 0; to < kStages; ++to) {
      for (int i = 0; i < kMessages; ++i) {
        sent[from][to].push_back(RandomBytes(100 + i, (from * 10 + to) * 1000 + i));
        received[from][to].emplace_back(100 + i);
      }
    }
  }
  Outcome sends, receives;
  std::vector<std::thread> threads;
  for (int stage = 0; stage < kStages; ++stage) {
    threads.emplace_back([&, stage] {
      for (int i = 0; i < kMessages; ++i) {
        for (int peer = 0; peer < kStages; ++peer) {
          if (peer == stage) continue;
          StageTransport& end = *joined.ends[stage];
          ASSERT_TRUE(end.Send(peer, sent[stage][peer][i], sends.done()).ok());
          ASSERT_TRUE(
              end.Receive(peer, absl::MakeSpan(received[peer][stage][i]), receives.done()).ok());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  constexpr int kAll = kStages * (kStages - 1) * kMessages;
  ASSERT_TRUE(receives.Wait(kAll).ok()) << receives.Wait(kAll);
  ASSERT_TRUE(sends.Wait(kAll).ok()) << sends.Wait(kAll);
  for (int from = 0; from < kStages; ++from) {
    for (int to = 0; to < kStages; ++to) {
      if (from != to) {
        EXPECT_EQ(received[from][to], sent[from][to]) << from << " to " << to;
      }
    }
  }
}

TEST_P(TransportConformanceTest, AReceiverThatPostsLateHoldsTheSenderBackAndLosesNothing) {
  // More than any sockets' buffers hold.
  constexpr size_t kMessageBytes = 4 * kMiB;
  constexpr int kMessages = 64;
  JoinedEnds joined = Join(2);
  const Bytes source = RandomBytes(kMessageBytes + 8 * kMessages, 3);
  const auto message = [&](int i) {
    return absl::MakeConstSpan(source).subspan(8 * i, kMessageBytes);
  };
  Outcome sends;
  for (int i = 0; i < kMessages; ++i) {
    ASSERT_TRUE(joined.ends[0]->Send(1, message(i), sends.done()).ok());
  }
  // The other direction is not held back, and gives this one time to go wrong.
  for (int i = 0; i < 200; ++i) ASSERT_NO_FATAL_FAILURE(ExpectWorks(joined, 1, 0));
  EXPECT_LT(sends.times(), size_t{kMessages});
  Bytes received(kMessageBytes);
  for (int i = 0; i < kMessages; ++i) {
    Outcome receive;
    ASSERT_TRUE(joined.ends[1]->Receive(0, absl::MakeSpan(received), receive.done()).ok());
    ASSERT_TRUE(receive.Wait().ok()) << receive.Wait();
    ASSERT_TRUE(Same(received, message(i))) << i;
  }
  EXPECT_TRUE(sends.Wait(kMessages).ok()) << sends.Wait(kMessages);
}

TEST_P(TransportConformanceTest, AfterDoneOfASendTheBytesAreTheCallersAgain) {
  // Some leave before they are received, if the transport has room; others wait.
  constexpr int kMessages = 40;
  constexpr size_t kMessageBytes = 600'000;
  JoinedEnds joined = Join(2);
  const Bytes source = RandomBytes(kMessageBytes + kMessages, 4);
  std::vector<Bytes> sent;
  Outcome sends;
  for (int i = 0; i < kMessages; ++i) {
    sent.emplace_back(source.begin() + i, source.begin() + i + kMessageBytes);
  }
  for (int i = 0; i < kMessages; ++i) {
    ASSERT_TRUE(joined.ends[0]
                    ->Send(1, sent[i],
                           [&, i, done = sends.done()](absl::Status status) mutable {
                             std::memset(sent[i].data(), 7, kMessageBytes);
                             std::move(done)(status);
                           })
                    .ok());
  }
  for (int i = 0; i < 100; ++i) ASSERT_NO_FATAL_FAILURE(ExpectWorks(joined, 1, 0));
  Bytes received(kMessageBytes);
  for (int i = 0; i < kMessages; ++i) {
    Outcome receive;
    ASSERT_TRUE(joined.ends[1]->Receive(0, absl::MakeSpan(received), receive.done()).ok());
    ASSERT_TRUE(receive.Wait().ok()) << receive.Wait();
    ASSERT_TRUE(Same(received, absl::MakeConstSpan(source).subspan(i, kMessageBytes))) << i;
  }
  EXPECT_TRUE(sends.Wait(kMessages).ok()) << sends.Wait(kMessages);
}

TEST_P(TransportConformanceTest, ManyCallsMayBeOutstanding) {
  constexpr size_t kMessages = 5'000;
  JoinedEnds joined = Join(2);
  std::vector<Bytes> sent, received;
  Outcome sends, receives;
  for (size_t i = 0; i < kMessages; ++i) {
    sent.push_back(RandomBytes(i % 300, i));
    received.emplace_back(i % 300);
  }
  for (size_t i = 0; i < kMessages / 2; ++i) {
    ASSERT_TRUE(joined.ends[1]->Receive(0, absl::MakeSpan(received[i]), receives.done()).ok());
  }
  for (const Bytes& bytes : sent) {
    ASSERT_TRUE(joined.ends[0]->Send(1, bytes, sends.done()).ok());
  }
  for (size_t i = kMessages / 2; i < kMessages; ++i) {
    ASSERT_TRUE(joined.ends[1]->Receive(0, absl::MakeSpan(received[i]), receives.done()).ok());
  }
  EXPECT_TRUE(receives.Wait(kMessages).ok()) << receives.Wait(kMessages);
  EXPECT_TRUE(sends.Wait(kMessages).ok()) << sends.Wait(kMessages);
  EXPECT_EQ(received, sent);
}

// Takes `rounds` messages and answers each from within its `done`, the last too if it is not the
// one that began.
class PingPong {
 public:
  PingPong(StageTransport& end, int peer, int rounds, bool begins)
      : end_(end), peer_(peer), rounds_(rounds), begins_(begins) {
    for (int i = 0; i <= rounds; ++i) answers_.emplace_back(8);
  }
  void Expect() {
    const absl::Status status =
        end_.Receive(peer_, absl::MakeSpan(buffer_), [this](absl::Status received) {
          if (!received.ok()) return over_.done()(received);
          const bool last = ++taken_ == rounds_;
          Bytes& answer = answers_[taken_];
          answer[0] = static_cast<std::byte>(std::to_integer<int>(buffer_[0]) + 1);
          if (last) over_.done()(received);
          if (!last) Expect();
          if (!last || !begins_) Serve(answer);
        });
    if (!status.ok()) over_.done()(status);
  }
  void Begin() { Serve(answers_[0]); }
  Outcome& over() { return over_; }
  Outcome& sends() { return sends_; }
  std::byte value() const { return buffer_[0]; }

 private:
  void Serve(const Bytes& answer) {
    const absl::Status status = end_.Send(peer_, answer, sends_.done());
    if (!status.ok()) over_.done()(status);
  }

  StageTransport& end_;
  const int peer_;
  const int rounds_;
  const bool begins_;
  int taken_ = 0;
  Bytes buffer_ = Bytes(8);
  std::vector<Bytes> answers_;  // each until its Send is done
  Outcome over_;
  Outcome sends_;
};

TEST_P(TransportConformanceTest, DoneMaySendAndReceive) {
  constexpr int kRounds = 2'000;
  JoinedEnds joined = Join(2);
  PingPong left(*joined.ends[0], 1, kRounds, /*begins=*/true);
  PingPong right(*joined.ends[1], 0, kRounds, /*begins=*/false);
  left.Expect();
  right.Expect();
  left.Begin();
  EXPECT_TRUE(left.over().Wait().ok()) << left.over().Wait();
  EXPECT_TRUE(right.over().Wait().ok()) << right.over().Wait();
  EXPECT_TRUE(left.sends().Wait(kRounds).ok());
  EXPECT_TRUE(right.sends().Wait(kRounds).ok());
  // Stage 0 sent 0; 2,000 answers of stage 1 and 1,999 of its own each added one, so what it took
  // last is 3,999, modulo 256 = 159.
  EXPECT_EQ(left.value(), std::byte{159});
}

TEST_P(TransportConformanceTest, DoneOfASendMaySendTheNext) {
  constexpr int kMessages = 3'000;
  JoinedEnds joined = Join(2);
  const Bytes sent = RandomBytes(100, 1);
  std::vector<Bytes> received(kMessages, Bytes(100));
  Outcome receives, all_sent;
  for (Bytes& bytes : received) {
    ASSERT_TRUE(joined.ends[1]->Receive(0, absl::MakeSpan(bytes), receives.done()).ok());
  }
  int left = kMessages;
  std::function<void()> next = [&] {
    const absl::Status status = joined.ends[0]->Send(1, sent, [&](absl::Status status) {
      if (!status.ok() || --left == 0) return all_sent.done()(status);
      next();
    });
    if (!status.ok()) all_sent.done()(status);
  };
  next();
  EXPECT_TRUE(all_sent.Wait().ok()) << all_sent.Wait();
  EXPECT_TRUE(receives.Wait(kMessages).ok()) << receives.Wait(kMessages);
  EXPECT_THAT(received, Each(sent));
}

TEST_P(TransportConformanceTest, ThereIsNoLinkToOneselfOrBeyond) {
  JoinedEnds joined = Join(2);
  Outcome outcome;
  for (const int peer : {-1, 0, 2}) {
    EXPECT_EQ(joined.ends[0]->Send(peer, {}, outcome.done()).code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(joined.ends[0]->Receive(peer, {}, outcome.done()).code(),
              absl::StatusCode::kNotFound);
  }
  joined.ends.clear();
  EXPECT_EQ(outcome.times(), 0u);
}

TEST_P(TransportConformanceTest, AMessageOfAnotherLengthEndsTheLinkAtBothEnds) {
  // One segment and many; too long and too short; nothing and something.
  const std::pair<size_t, size_t> kLengths[] = {
      {10, 9}, {9, 10}, {0, 1}, {1, 0}, {3 * kMiB, 3 * kMiB - 1}, {kMiB, 64 * kMiB}};
  for (const auto& [sent_bytes, expected_bytes] : kLengths) {
    JoinedEnds joined = Join(3);
    const Bytes sent = RandomBytes(sent_bytes, 1);
    Bytes received(expected_bytes, std::byte{42});
    Outcome first, later, back, sends;
    ASSERT_TRUE(joined.ends[0]->Receive(1, absl::MakeSpan(received), back.done()).ok());
    ASSERT_TRUE(joined.ends[0]->Send(1, sent, sends.done()).ok());
    ASSERT_TRUE(joined.ends[1]->Receive(0, absl::MakeSpan(received), first.done()).ok());
    const absl::Status posted = joined.ends[1]->Receive(0, absl::MakeSpan(received), later.done());
    const std::string lengths = absl::StrCat("a message of ", sent_bytes, " bytes came where ",
                                             expected_bytes, " were expected");
    EXPECT_EQ(first.Wait().code(), kInvalidArgument);
    EXPECT_THAT(Message(first.Wait()), HasSubstr("stage 0"));
    EXPECT_THAT(Message(first.Wait()), HasSubstr(lengths));
    EXPECT_EQ(posted.ok() ? later.Wait() : posted, first.Wait());
    EXPECT_EQ(joined.ends[1]->Send(0, {}, back.done()), first.Wait());
    EXPECT_TRUE(AllAre(std::byte{42}, received));
    // A transport may have got rid of the message before it hears; what is pending tells.
    EXPECT_EQ(back.Wait().code(), kUnavailable);
    EXPECT_THAT(Message(back.Wait()), HasSubstr("stage 1"));
    EXPECT_THAT(Message(back.Wait()), HasSubstr(lengths));
    EXPECT_EQ(joined.ends[0]->Send(1, {}, sends.done()), back.Wait());
    ExpectWorks(joined, 0, 2);
    ExpectWorks(joined, 2, 1);
  }
}

TEST_P(TransportConformanceTest, CloseCancelsWhatIsPendingAtBothEndsAndLeavesOthersAlone) {
  JoinedEnds joined = Join(3);
  const Bytes sent = RandomBytes(64 * kMiB, 0);
  Bytes at_0(4), at_1(4);
  Outcome receive_at_0, receive_at_1, send_from_1, send_from_2;
  ASSERT_TRUE(joined.ends[0]->Receive(1, absl::MakeSpan(at_0), receive_at_0.done()).ok());
  ASSERT_TRUE(joined.ends[1]->Receive(0, absl::MakeSpan(at_1), receive_at_1.done()).ok());
  // Longer than what sockets hold, so they stay.
  ASSERT_TRUE(joined.ends[1]->Send(2, sent, send_from_1.done()).ok());
  ASSERT_TRUE(joined.ends[2]->Send(1, sent, send_from_2.done()).ok());
  joined.ends[1]->Close();
  for (Outcome* const outcome : {&receive_at_1, &send_from_1}) {
    EXPECT_EQ(outcome->times(), 1u);  // when Close has returned
    EXPECT_EQ(outcome->Wait().code(), kCancelled) << outcome->Wait();
  }
  joined.ends[1]->Close();
  for (Outcome* const outcome : {&receive_at_0, &send_from_2}) {
    EXPECT_EQ(outcome->Wait().code(), kCancelled) << outcome->Wait();
    EXPECT_THAT(Message(outcome->Wait()), HasSubstr("closed by stage 1"));
  }
  Outcome none;
  EXPECT_EQ(joined.ends[0]->Send(1, {}, none.done()), receive_at_0.Wait());
  EXPECT_EQ(joined.ends[0]->Receive(1, {}, none.done()), receive_at_0.Wait());
  EXPECT_EQ(joined.ends[1]->Send(0, {}, none.done()).code(), kCancelled);
  EXPECT_EQ(joined.ends[1]->Receive(2, {}, none.done()).code(), kCancelled);
  ExpectWorks(joined, 0, 2);
  ExpectWorks(joined, 2, 0);
  joined.ends.clear();
  EXPECT_EQ(none.times(), 0u);
  for (Outcome* const outcome : {&receive_at_0, &receive_at_1, &send_from_1, &send_from_2}) {
    EXPECT_EQ(outcome->times(), 1u);
  }
}

TEST_P(TransportConformanceTest, DestroyingAnEndClosesIt) {
  JoinedEnds joined = Join(2);
  Outcome receive;
  Bytes buffer(4);
  ASSERT_TRUE(joined.ends[0]->Receive(1, absl::MakeSpan(buffer), receive.done()).ok());
  joined.ends[1].reset();
  EXPECT_EQ(receive.Wait().code(), kCancelled) << receive.Wait();
}

TEST_P(TransportConformanceTest, DoneMayClose) {
  for (const bool closed_by_sender : {true, false}) {
    JoinedEnds joined = Join(2);
    const Bytes sent = RandomBytes(100, 0);
    Bytes received(100), never(1);
    Outcome send, receive, pending;
    const auto close_then = [](StageTransport& end, StageTransport::Done done) {
      return [&end, done = std::move(done)](absl::Status status) mutable {
        end.Close();
        EXPECT_EQ(end.Send(0, {}, [](absl::Status) {}).ok(), false);
        std::move(done)(status);
      };
    };
    StageTransport& sender = *joined.ends[0];
    StageTransport& receiver = *joined.ends[1];
    StageTransport& closer = closed_by_sender ? sender : receiver;
    ASSERT_TRUE(receiver
                    .Receive(0, absl::MakeSpan(received),
                             closed_by_sender ? receive.done() : close_then(closer, receive.done()))
                    .ok());
    ASSERT_TRUE(receiver.Receive(0, absl::MakeSpan(never), pending.done()).ok());
    ASSERT_TRUE(
        sender.Send(1, sent, closed_by_sender ? close_then(closer, send.done()) : send.done())
            .ok());
    EXPECT_EQ((closed_by_sender ? send : receive).Wait().code(), kOk);
    EXPECT_EQ(pending.Wait().code(), kCancelled) << pending.Wait();
    closer.Close();
    joined.ends.clear();
    EXPECT_EQ(send.times(), 1u);
    EXPECT_EQ(receive.times(), 1u);
    EXPECT_EQ(pending.times(), 1u);
  }
}

TEST_P(TransportConformanceTest, CloseWaitsForADoneThatRunsElsewhere) {
  JoinedEnds joined = Join(2);
  const Bytes sent(4);
  Bytes received(4);
  Outcome began;
  std::atomic<bool> closing = false;
  std::atomic<bool> ended = false;
  ASSERT_TRUE(joined.ends[1]
                  ->Receive(0, absl::MakeSpan(received),
                            [&, done = began.done()](absl::Status status) mutable {
                              std::move(done)(status);
                              while (!closing) std::this_thread::yield();
                              // So that a Close that does not wait has returned.
                              std::this_thread::sleep_for(std::chrono::milliseconds(20));
                              ended = true;
                            })
                  .ok());
  std::thread sender([&] { ASSERT_TRUE(joined.ends[0]->Send(1, sent, [](absl::Status) {}).ok()); });
  EXPECT_TRUE(began.Wait().ok()) << began.Wait();
  closing = true;
  joined.ends[1]->Close();
  EXPECT_TRUE(ended);
  sender.join();
}

TEST_P(TransportConformanceTest, CloseMayComeWhileOthersCall) {
  for (int round = 0; round < 10; ++round) {
    JoinedEnds joined = Join(2);
    const Bytes sent = RandomBytes(1000, round);
    std::atomic<size_t> accepted = 0;
    Outcome outcome;
    const auto until_refused = [&](auto call) {
      return std::thread([&, call] {
        for (absl::Status status; status.ok();) {
          status = call();
          if (status.ok()) ++accepted;
          EXPECT_THAT(status.code(), AnyOf(kOk, kCancelled)) << status;
        }
      });
    };
    Bytes buffer(1000);
    std::vector<std::thread> threads;
    // All receives share a buffer: a link takes one message at a time, and nobody reads it.
    threads.push_back(until_refused([&] { return joined.ends[0]->Send(1, sent, outcome.done()); }));
    threads.push_back(until_refused([&] { return joined.ends[0]->Send(1, sent, outcome.done()); }));
    threads.push_back(until_refused(
        [&] { return joined.ends[1]->Receive(0, absl::MakeSpan(buffer), outcome.done()); }));
    // Somewhere in the midst of it, later in each round.
    EXPECT_TRUE(outcome.Came(1 + 100 * round));
    std::thread other([&] { joined.ends[round % 2]->Close(); });
    joined.ends[round % 2]->Close();
    other.join();
    for (std::thread& thread : threads) thread.join();
    joined.ends.clear();
    EXPECT_EQ(outcome.times(), accepted);
    EXPECT_THAT(Codes(outcome), Each(AnyOf(kOk, kCancelled)));
  }
}

TEST_P(TransportConformanceTest, AfterDoneTheBuffersOfACancelledMessageAreLeftAlone) {
  const Bytes small = RandomBytes(8, 1);
  Bytes small_received(8);
  const Bytes copy = RandomBytes(64 * kMiB, 2);
  for (int round = 0; round < 8; ++round) {
    JoinedEnds joined = Join(2);
    Bytes sent = copy;
    Bytes received(sent.size());
    Outcome first, send, receive;
    ASSERT_TRUE(joined.ends[1]->Receive(0, absl::MakeSpan(small_received), first.done()).ok());
    ASSERT_TRUE(joined.ends[1]->Receive(0, absl::MakeSpan(received), receive.done()).ok());
    ASSERT_TRUE(joined.ends[0]->Send(1, small, [](absl::Status) {}).ok());
    ASSERT_TRUE(joined.ends[0]->Send(1, sent, send.done()).ok());
    ASSERT_TRUE(first.Wait().ok());
    joined.ends[round % 2]->Close();  // the long one is on its way
    const absl::StatusCode at_receiver = receive.Wait().code();
    EXPECT_THAT(at_receiver, AnyOf(kOk, kCancelled)) << receive.Wait();
    if (at_receiver == kOk) {
      EXPECT_TRUE(Same(received, copy));
    }
    std::memset(received.data(), 7, received.size());
    EXPECT_THAT(send.Wait().code(), AnyOf(kOk, kCancelled)) << send.Wait();
    std::memset(sent.data(), 8, sent.size());
    joined.ends.clear();
    EXPECT_TRUE(AllAre(std::byte{7}, received));
    EXPECT_EQ(send.times(), 1u);
    EXPECT_EQ(receive.times(), 1u);
  }
}

TEST_P(TransportConformanceTest, APeersDeathEndsWhatIsPendingAndAllThatComesLater) {
  if (!GetParam().can_kill) GTEST_SKIP() << "its stages cannot die alone";
  JoinedEnds joined = Join(3);
  const Bytes sent = RandomBytes(64 * kMiB, 0);
  Bytes at_0(4), at_2(4);
  Outcome receives, sends;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(joined.ends[0]->Receive(1, absl::MakeSpan(at_0), receives.done()).ok());
    ASSERT_TRUE(joined.ends[0]->Send(1, sent, sends.done()).ok());
    ASSERT_TRUE(joined.ends[2]->Receive(1, absl::MakeSpan(at_2), receives.done()).ok());
    ASSERT_TRUE(joined.ends[2]->Send(1, sent, sends.done()).ok());
  }
  joined.kill(1);
  for (Outcome* const outcome : {&receives, &sends}) {
    EXPECT_EQ(outcome->Wait(6).code(), kUnavailable) << outcome->Wait(6);
    EXPECT_THAT(Codes(*outcome), Each(kUnavailable));
    EXPECT_THAT(Message(outcome->Wait(6)), HasSubstr("stage 1"));
  }
  Outcome none;
  EXPECT_EQ(joined.ends[0]->Send(1, sent, none.done()).code(), kUnavailable);
  EXPECT_EQ(joined.ends[2]->Receive(1, absl::MakeSpan(at_2), none.done()).code(), kUnavailable);
  ExpectWorks(joined, 0, 2);
  ExpectWorks(joined, 2, 0);
  joined.ends.clear();
  EXPECT_EQ(none.times(), 0u);
  EXPECT_EQ(sends.times(), 6u);
  EXPECT_EQ(receives.times(), 6u);
}

TEST_P(TransportConformanceTest, ADeathOnAnIdleLinkIsFoundBeforeTheNextMessage) {
  if (!GetParam().can_kill) GTEST_SKIP() << "its stages cannot die alone";
  JoinedEnds joined = Join(2);
  ExpectWorks(joined, 0, 1);
  joined.kill(1);
  Bytes buffer(4);
  Outcome receive;
  const absl::Status posted = joined.ends[0]->Receive(1, absl::MakeSpan(buffer), receive.done());
  const absl::Status status = posted.ok() ? receive.Wait() : posted;
  EXPECT_EQ(status.code(), kUnavailable) << status;
  EXPECT_THAT(Message(status), HasSubstr("stage 1"));
}

TEST_P(TransportConformanceTest, ADeathInTheMidstOfTrafficLosesNoDone) {
  if (!GetParam().can_kill) GTEST_SKIP() << "its stages cannot die alone";
  for (int round = 0; round < 5; ++round) {
    JoinedEnds joined = Join(2);
    const Bytes sent = RandomBytes(700'000, round);
    Bytes buffer(sent.size());
    std::atomic<size_t> accepted = 0;
    Outcome outcome;
    std::vector<std::thread> threads;
    const auto until_refused = [&](auto call) {
      return std::thread([&, call] {
        for (int i = 0; i < 100'000; ++i) {
          const absl::Status status = call();
          if (!status.ok()) {
            EXPECT_EQ(status.code(), kUnavailable) << status;
            return;
          }
          ++accepted;
        }
      });
    };
    threads.push_back(until_refused([&] { return joined.ends[0]->Send(1, sent, outcome.done()); }));
    threads.push_back(until_refused(
        [&] { return joined.ends[1]->Receive(0, absl::MakeSpan(buffer), outcome.done()); }));
    EXPECT_TRUE(outcome.Came(1 + 20 * round));
    joined.kill(1);
    for (std::thread& thread : threads) thread.join();
    const size_t all = accepted;
    EXPECT_TRUE(outcome.Came(all));
    EXPECT_THAT(Codes(outcome), Each(AnyOf(kOk, kUnavailable)));
    joined.ends.clear();
    EXPECT_EQ(outcome.times(), all);
  }
}

}  // namespace
}  // namespace fabricast
