#include "runtime/transport/tcp_transport.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/check.h"
#include "runtime/transport/conformance/outcome.h"
#include "runtime/transport/tcp_frame.h"
#include "runtime/transport/tcp_socket.h"

namespace fabricast {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// Stage 0, joined to a stage 1 that the test plays itself, byte by byte.
class TcpTransportTest : public testing::Test {
 protected:
  ~TcpTransportTest() override { stage_.reset(); }

  void Join(int streams, absl::Duration dead_after = absl::Seconds(60)) {
    const SocketAddress any = *SocketAddress::Parse("127.0.0.1:0");
    const UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    FABRICAST_CHECK(bind(listener.get(), any.get(), any.size()) == 0 &&
                    listen(listener.get(), 16) == 0)
        << ErrorText(errno);
    const SocketAddress address = SocketAddress::OfSocket(listener.get());
    std::vector<UniqueFd> ours;
    for (int i = 0; i <= streams; ++i) {
      UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      FABRICAST_CHECK(connect(fd.get(), address.get(), address.size()) == 0) << ErrorText(errno);
      ours.emplace_back(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      FABRICAST_CHECK(ours.back().valid()) << ErrorText(errno);
      SetNoDelay(fd.get());
      peer_.push_back(std::move(fd));
    }
    std::vector<TcpLink::Setup> links;
    links.push_back({.stage = 0,
                     .peer = 1,
                     .peer_address = "10.0.0.2:5",
                     .sockets = std::move(ours),
                     .dead_after = dead_after,
                     .on_broken = [this](int peer, const absl::Status& status) {
                       EXPECT_EQ(peer, 1);
                       if (then_) then_();
                       broken_.done()(status);
                     }});
    stage_ = *MakeTcpTransport(0, std::move(links));
  }

  // Sends on that connection of the peer: 0 is the control stream.
  void Say(int connection, absl::Span<const std::byte> bytes) {
    ASSERT_EQ(send(peer_[connection].get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  void SaySegment(int connection, const SegmentHeader& header,
                  absl::Span<const std::byte> message) {
    // In one piece: the stage may end the link when it has seen the header.
    Bytes bytes(SegmentHeader::kBytes);
    EncodeSegmentHeader(header, absl::MakeSpan(bytes));
    const absl::Span<const std::byte> payload = message.subspan(header.offset, header.bytes);
    bytes.insert(bytes.end(), payload.begin(), payload.end());
    Say(connection, bytes);
  }
  absl::Status Receive(absl::Span<std::byte> buffer, Outcome& outcome) {
    return stage_->Receive(1, buffer, outcome.done());
  }
  // The last words of the stage, as the peer hears them.
  absl::StatusOr<Farewell> HearFarewell() {
    std::array<std::byte, Farewell::kBytes + 1> bytes;
    const ssize_t got = recv(peer_[0].get(), bytes.data(), bytes.size(), MSG_WAITALL);
    if (got != Farewell::kBytes) return absl::NotFoundError(absl::StrCat(got, " bytes"));
    return DecodeFarewell(absl::MakeConstSpan(bytes).first(Farewell::kBytes));
  }

  std::vector<UniqueFd> peer_;
  Outcome broken_;
  std::function<void()> then_;  // of on_broken
  std::unique_ptr<StageTransport> stage_;
};

Bytes Numbered(size_t size) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 31 + i / 251);
  return bytes;
}

TEST_F(TcpTransportTest, SegmentsMayComeOnAnyStreamInAnyOrderAndMessagesEndInOrder) {
  Join(3);
  const Bytes message_0 = Numbered(2 * kSegmentBytes + 5), message_1 = Numbered(10);
  Bytes at_0(message_0.size()), at_1(message_1.size());
  Outcome ended;
  std::vector<int> order;
  for (const int i : {0, 1}) {
    Bytes& into = i == 0 ? at_0 : at_1;
    ASSERT_TRUE(stage_
                    ->Receive(1, absl::MakeSpan(into),
                              [&, i, done = ended.done()](absl::Status status) mutable {
                                order.push_back(i);
                                std::move(done)(status);
                              })
                    .ok());
  }
  SaySegment(3, SegmentHeader::Of(1, message_1.size(), 0), message_1);
  SaySegment(2, SegmentHeader::Of(0, message_0.size(), 2), message_0);
  std::thread other([&] { SaySegment(1, SegmentHeader::Of(0, message_0.size(), 1), message_0); });
  SaySegment(2, SegmentHeader::Of(0, message_0.size(), 0), message_0);
  other.join();
  EXPECT_TRUE(ended.Wait(2).ok()) << ended.Wait(2);
  EXPECT_THAT(order, ElementsAre(0, 1));
  EXPECT_EQ(at_0, message_0);
  EXPECT_EQ(at_1, message_1);
}

TEST_F(TcpTransportTest, AMessageMayComeByteByByte) {
  Join(1);
  const Bytes message = Numbered(100);
  Bytes first(message.size()), second(message.size());
  Outcome ended;
  ASSERT_TRUE(Receive(absl::MakeSpan(first), ended).ok());
  ASSERT_TRUE(Receive(absl::MakeSpan(second), ended).ok());
  Bytes wire;
  for (const int number : {0, 1}) {
    wire.resize(wire.size() + SegmentHeader::kBytes);
    EncodeSegmentHeader(SegmentHeader::Of(number, message.size(), 0),
                        absl::MakeSpan(wire).last(SegmentHeader::kBytes));
    wire.insert(wire.end(), message.begin(), message.end());
  }
  for (const std::byte& byte : wire) Say(1, absl::MakeConstSpan(&byte, 1));
  EXPECT_TRUE(ended.Wait(2).ok()) << ended.Wait(2);
  EXPECT_EQ(first, message);
  EXPECT_EQ(second, message);
}

TEST_F(TcpTransportTest, WhatNoStageSendsEndsTheLinkAndLeavesBuffersAlone) {
  constexpr uint64_t kTotal = 2 * kSegmentBytes;
  struct Offence {
    SegmentHeader before;  // a good one of no message if its bytes are 0
    SegmentHeader header;
    std::string says;
  };
  SegmentHeader beyond = SegmentHeader::Of(0, kTotal, 1);
  beyond.offset += kSegmentBytes;
  SegmentHeader longer = SegmentHeader::Of(0, kTotal, 1);
  longer.bytes += 1;
  const Offence offences[] = {
      {{}, beyond, "a segment of 524288 bytes from 1048576 in a message of 1048576"},
      {{}, longer, "a segment of 524289 bytes from 524288 in a message of 1048576"},
      {{}, SegmentHeader::Of(1 << 25, kTotal, 0), "message 33554432 came when 0 was next"},
      {SegmentHeader::Of(0, kTotal, 1), SegmentHeader::Of(0, kTotal, 1),
       "message 0: the segment from 524288 came again"},
  };
  const Bytes message = Numbered(kTotal);
  for (const Offence& offence : offences) {
    peer_.clear();
    broken_ = Outcome();
    Join(1);
    Bytes buffer(kTotal, std::byte{9});
    Outcome receive, send;
    ASSERT_TRUE(Receive(absl::MakeSpan(buffer), receive).ok());
    ASSERT_TRUE(Receive(absl::MakeSpan(buffer), receive).ok());
    if (offence.before.bytes > 0) SaySegment(1, offence.before, message);
    std::array<std::byte, SegmentHeader::kBytes> bytes;
    EncodeSegmentHeader(offence.header, absl::MakeSpan(bytes));
    Say(1, bytes);
    EXPECT_EQ(receive.Wait(2).code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(Message(receive.Wait(2)),
                HasSubstr("stage 1 (10.0.0.2:5) sent what no stage sends: " + offence.says));
    EXPECT_EQ(broken_.Wait(), receive.Wait(2));
    EXPECT_EQ(stage_->Send(1, message, send.done()), receive.Wait(2));
    const absl::StatusOr<Farewell> farewell = HearFarewell();
    ASSERT_TRUE(farewell.ok()) << farewell.status();
    EXPECT_EQ(farewell->reason, Farewell::Reason::kBroken);
    if (offence.before.bytes == 0) {
      EXPECT_THAT(buffer, Each(std::byte{9}));
    }
  }
}

TEST_F(TcpTransportTest, AMessageThatIsOverDoesNotComeAgain) {
  Join(1);
  Bytes buffer(1);
  Outcome first, second;
  ASSERT_TRUE(Receive(absl::MakeSpan(buffer), first).ok());
  SaySegment(1, SegmentHeader::Of(0, 1, 0), Numbered(1));
  ASSERT_TRUE(first.Wait().ok()) << first.Wait();
  ASSERT_TRUE(Receive(absl::MakeSpan(buffer), second).ok());
  SaySegment(1, SegmentHeader::Of(0, 1, 0), Numbered(1));
  EXPECT_THAT(Message(second.Wait()), HasSubstr("message 0 came again"));
}

TEST_F(TcpTransportTest, GarbageEndsTheLink) {
  for (const int connection : {0, 1}) {
    peer_.clear();
    Join(1);
    Bytes buffer(100, std::byte{9});
    Outcome receive;
    ASSERT_TRUE(Receive(absl::MakeSpan(buffer), receive).ok());
    Say(connection, Bytes(4096, std::byte{'g'}));
    EXPECT_EQ(receive.Wait().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(Message(receive.Wait()), HasSubstr(connection == 0 ? "no farewell" : "no segment"));
    EXPECT_THAT(buffer, Each(std::byte{9}));
  }
}

TEST_F(TcpTransportTest, AFarewellSaysWhy) {
  struct Said {
    Farewell farewell;
    absl::StatusCode code;
    std::string says;
  };
  const Said all[] = {
      {{.reason = Farewell::Reason::kClosed},
       absl::StatusCode::kCancelled,
       "the link of stages 0 and 1 was closed by stage 1"},
      {{.reason = Farewell::Reason::kWrongLength, .came = 4, .expected = 5},
       absl::StatusCode::kUnavailable,
       "stage 1 (10.0.0.2:5) ended the link: a message of 4 bytes came where 5 were expected"},
      {{.reason = Farewell::Reason::kBroken},
       absl::StatusCode::kUnavailable,
       "stage 1 (10.0.0.2:5) ended the link: what came there was broken"},
  };
  for (const Said& said : all) {
    peer_.clear();
    Join(1);
    Bytes buffer(4);
    Outcome receive;
    ASSERT_TRUE(Receive(absl::MakeSpan(buffer), receive).ok());
    std::array<std::byte, Farewell::kBytes> bytes;
    EncodeFarewell(said.farewell, absl::MakeSpan(bytes));
    Say(0, absl::MakeConstSpan(bytes).first(5));
    EXPECT_EQ(receive.times(), 0u);
    Say(0, absl::MakeConstSpan(bytes).subspan(5));
    // As a process that ends; it does not matter then.
    peer_.clear();
    EXPECT_EQ(receive.Wait().code(), said.code);
    EXPECT_EQ(Message(receive.Wait()), said.says);
  }
}

TEST_F(TcpTransportTest, AControlStreamThatEndsWithoutAFarewellIsADeath) {
  Join(1);
  Bytes buffer(4);
  Outcome receive;
  ASSERT_TRUE(Receive(absl::MakeSpan(buffer), receive).ok());
  Say(0, Bytes(3, std::byte{'f'}));
  shutdown(peer_[0].get(), SHUT_WR);
  EXPECT_EQ(receive.Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Message(receive.Wait()), "stage 1 (10.0.0.2:5) is gone: it went without a farewell");
}

TEST_F(TcpTransportTest, ADataStreamThatFailsWaitsForTheFarewell) {
  Join(2);
  Bytes buffer(4);
  Outcome receive;
  ASSERT_TRUE(Receive(absl::MakeSpan(buffer), receive).ok());
  peer_[2].Reset();
  // The other stream goes on meanwhile: its message shows that the failure has been seen, or will
  // be after it, but decides nothing.
  SaySegment(1, SegmentHeader::Of(0, 4, 0), Numbered(4));
  EXPECT_TRUE(receive.Wait().ok()) << receive.Wait();
  Outcome next;
  ASSERT_TRUE(Receive(absl::MakeSpan(buffer), next).ok());
  std::array<std::byte, Farewell::kBytes> bytes;
  EncodeFarewell({}, absl::MakeSpan(bytes));
  Say(0, bytes);
  EXPECT_EQ(next.Wait().code(), absl::StatusCode::kCancelled) << next.Wait();
}

TEST_F(TcpTransportTest, ADataStreamThatFailsAloneEndsTheLinkAfterAWhile) {
  Join(2, absl::Seconds(1));
  Bytes buffer(4);
  Outcome receive;
  ASSERT_TRUE(Receive(absl::MakeSpan(buffer), receive).ok());
  peer_[2].Reset();
  EXPECT_EQ(receive.Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(receive.Wait()), HasSubstr("a stream failed: the connection was closed"));
}

TEST_F(TcpTransportTest, AStreamWithoutABufferIsLeftAlone) {
  Join(1);
  // More than the sockets hold, so that the peer cannot get rid of it unless somebody reads.
  const Bytes message = Numbered(64 << 20);
  ASSERT_EQ(fcntl(peer_[1].get(), F_SETFL, O_NONBLOCK), 0);
  size_t said = 0;
  std::array<std::byte, SegmentHeader::kBytes> header;
  EncodeSegmentHeader(SegmentHeader::Of(0, message.size(), 0), absl::MakeSpan(header));
  Say(1, header);
  while (said < message.size()) {
    const ssize_t more =
        send(peer_[1].get(), &message[said], message.size() - said, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (more > 0) {
      said += static_cast<size_t>(more);
      continue;
    }
    // Full for a second: nobody reads.
    pollfd room = {.fd = peer_[1].get(), .events = POLLOUT, .revents = 0};
    if (poll(&room, 1, 1000) == 0) break;
  }
  EXPECT_LT(said, message.size());
}

TEST_F(TcpTransportTest, CloseSaysFarewell) {
  Join(1);
  stage_->Close();
  const absl::StatusOr<Farewell> farewell = HearFarewell();
  ASSERT_TRUE(farewell.ok()) << farewell.status();
  EXPECT_EQ(farewell->reason, Farewell::Reason::kClosed);
  EXPECT_EQ(broken_.times(), 0u);
}

TEST_F(TcpTransportTest, OnBrokenMayClose) {
  Join(1);
  then_ = [this] { stage_->Close(); };
  Bytes buffer(4);
  Outcome receive;
  ASSERT_TRUE(Receive(absl::MakeSpan(buffer), receive).ok());
  shutdown(peer_[0].get(), SHUT_WR);
  EXPECT_EQ(receive.Wait().code(), absl::StatusCode::kUnavailable);
  stage_->Close();
  EXPECT_EQ(broken_.times(), 1u);
}

}  // namespace
}  // namespace fabricast
