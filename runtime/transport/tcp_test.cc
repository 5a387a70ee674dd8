#include "runtime/transport/tcp.h"

#include <sys/socket.h>

#include <cstring>
#include <future>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/check.h"
#include "runtime/transport/conformance/outcome.h"
#include "runtime/transport/conformance/transport_conformance.h"
#include "runtime/transport/relay.h"
#include "runtime/transport/tcp_socket.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;
using Joined = absl::StatusOr<std::unique_ptr<StageTransport>>;

constexpr size_t kMiB = size_t{1} << 20;
constexpr char kToken[] = "0123456789abcdef";
// Longer than anything takes here.
constexpr absl::Duration kPatience = absl::Minutes(2);

std::unique_ptr<TcpEndpoint> Listen(const TcpOptions& options = {},
                                    const std::string& token = kToken,
                                    const std::string& ip = "127.0.0.1", int port = 0) {
  absl::StatusOr<std::unique_ptr<TcpEndpoint>> endpoint =
      TcpEndpoint::Listen(ip, port, SharedSecret(token), options);
  FABRICAST_CHECK(endpoint.ok()) << endpoint.status();
  return *std::move(endpoint);
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// Heard from on_broken.
struct Broken {
  Outcome outcome;
  std::function<void(int, const absl::Status&)> callback() {
    return [this](int, const absl::Status& status) { outcome.done()(status); };
  }
};

// Stages in this process, joined by TCP; with relays, every link goes through one.
struct Stages {
  std::vector<std::unique_ptr<TcpEndpoint>> endpoints;
  std::map<std::pair<int, int>, std::unique_ptr<Relay>> relays;  // by lower and higher stage
  std::vector<std::unique_ptr<Broken>> broken;
  std::vector<std::unique_ptr<StageTransport>> ends;

  Relay& relay(int lower, int higher) { return *relays.at({lower, higher}); }
};

std::shared_ptr<Stages> Join(int stages, const TcpOptions& options, bool relays = false,
                             const std::string& ip = "127.0.0.1") {
  auto joined = std::make_shared<Stages>();
  for (int i = 0; i < stages; ++i) {
    joined->endpoints.push_back(Listen(options, kToken, ip));
    joined->broken.push_back(std::make_unique<Broken>());
  }
  std::vector<std::future<Joined>> ends;
  for (int i = 0; i < stages; ++i) {
    TcpGroup group = {.session = "test", .stage = i, .peers = {}, .on_broken = nullptr};
    group.on_broken = joined->broken[i]->callback();
    for (int peer = 0; peer < stages; ++peer) {
      if (peer == i) continue;
      group.peers[peer] = joined->endpoints[peer]->address();
      if (!relays || peer < i) continue;
      std::unique_ptr<Relay>& relay = joined->relays[{i, peer}];
      relay = std::make_unique<Relay>(group.peers[peer]);
      group.peers[peer] = relay->address();
    }
    ends.push_back(std::async(std::launch::async, [endpoint = joined->endpoints[i].get(), group] {
      return endpoint->Connect(group, absl::Now() + kPatience);
    }));
  }
  for (std::future<Joined>& end : ends) {
    Joined transport = end.get();
    FABRICAST_CHECK(transport.ok()) << transport.status();
    joined->ends.push_back(*std::move(transport));
  }
  return joined;
}

TransportUnderTest UnderTest(const std::string& name, const TcpOptions& options, bool relays) {
  const auto join = [options, relays](int stages) {
    const std::shared_ptr<Stages> joined = Join(stages, options, relays);
    JoinedEnds ends;
    ends.ends = std::move(joined->ends);
    ends.kill = [joined](int stage) {
      for (const auto& [link, relay] : joined->relays) {
        if (link.first == stage || link.second == stage) relay->Reset();
      }
    };
    return ends;
  };
  return {.name = name, .join = join, .can_kill = relays};
}

INSTANTIATE_TEST_SUITE_P(Tcp, TransportConformanceTest,
                         testing::Values(UnderTest("one_stream", {.streams = 1}, false),
                                         UnderTest("three_streams", {.streams = 3}, false),
                                         UnderTest("relayed", {.streams = 2}, true)),
                         testing::PrintToStringParamName());

void ExpectWorks(StageTransport& from, int from_stage, StageTransport& to, int to_stage) {
  const Bytes sent(1000, std::byte{3});
  Bytes received(1000);
  Outcome outcome;
  ASSERT_TRUE(from.Send(to_stage, sent, outcome.done()).ok());
  ASSERT_TRUE(to.Receive(from_stage, absl::MakeSpan(received), outcome.done()).ok());
  ASSERT_TRUE(outcome.Wait(2).ok()) << outcome.Wait(2);
  EXPECT_EQ(received, sent);
}

TcpGroup Group(int stage, const std::map<int, std::string>& peers,
               const std::string& session = "test") {
  return {.session = session, .stage = stage, .peers = peers, .on_broken = nullptr};
}

// Both ends' Connect, at the same time.
std::pair<Joined, Joined> ConnectBoth(TcpEndpoint& at_0, const TcpGroup& group_0, TcpEndpoint& at_1,
                                      const TcpGroup& group_1, absl::Duration patience) {
  const absl::Time deadline = absl::Now() + patience;
  std::future<Joined> first =
      std::async(std::launch::async, [&] { return at_0.Connect(group_0, deadline); });
  Joined second = at_1.Connect(group_1, deadline);
  return {first.get(), std::move(second)};
}

TEST(TcpTest, WorksOverIpv6) {
  const std::shared_ptr<Stages> stages = Join(2, {.streams = 2}, /*relays=*/false, "::1");
  EXPECT_THAT(stages->endpoints[0]->address(), HasSubstr("[::1]:"));
  ExpectWorks(*stages->ends[0], 0, *stages->ends[1], 1);
}

TEST(TcpTest, AListenersMistakesAreNamedWithTheirMend) {
  const auto error = [](const std::string& ip, int port, const TcpOptions& options) {
    return Message(TcpEndpoint::Listen(ip, port, SharedSecret(kToken), options).status());
  };
  EXPECT_THAT(error("host", 0, {}), HasSubstr("'host' is no IP address"));
  EXPECT_THAT(error("127.0.0.1", 65536, {}), HasSubstr("ports are 0 to 65535"));
  EXPECT_THAT(error("127.0.0.1", 0, {.streams = 0}), HasSubstr("0 streams a link: give 1 to 16"));
  EXPECT_THAT(error("127.0.0.1", 0, {.dead_after = absl::Milliseconds(999)}),
              HasSubstr("give a second to a day"));
  // TEST-NET-1 (RFC 5737): nobody's.
  EXPECT_THAT(error("192.0.2.1", 0, {}), HasSubstr("give an address of this machine"));
  const std::unique_ptr<TcpEndpoint> taken = Listen();
  const SocketAddress address = *SocketAddress::Parse(taken->address());
  const int port = std::stoi(taken->address().substr(taken->address().rfind(':') + 1));
  EXPECT_THAT(error("127.0.0.1", port, {}),
              AllOf(HasSubstr(address.ToString()), HasSubstr("give another port")));
}

TEST(TcpTest, ConnectNamesWhoIsMissingAndWhy) {
  const std::unique_ptr<TcpEndpoint> endpoint = Listen();
  const std::string closed = Listen()->address();  // nobody listens there any more
  const Joined joined = endpoint->Connect(Group(1, {{0, "127.0.0.1:9"}, {2, closed}}),
                                          absl::Now() + absl::Milliseconds(200));
  EXPECT_EQ(joined.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(joined.status()),
              AllOf(HasSubstr("stage 1 is not joined to stage 0 (127.0.0.1:9): it has not dialled"),
                    HasSubstr("stage 2 (" + closed + "): Connection refused")));
}

TEST(TcpTest, ConnectRefusesPeersThatCannotBe) {
  const std::unique_ptr<TcpEndpoint> endpoint = Listen();
  const auto error = [&](const std::map<int, std::string>& peers) {
    return endpoint->Connect(Group(1, peers), absl::Now() + kPatience).status();
  };
  EXPECT_EQ(error({{1, "127.0.0.1:9"}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(error({{-1, "127.0.0.1:9"}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(error({{2, "nowhere"}})), HasSubstr("stage 2: address 'nowhere'"));
}

TEST(TcpTest, AGroupWithoutPeersIsJoinedAtOnce) {
  const Joined joined = Listen()->Connect(Group(0, {}), absl::InfiniteFuture());
  ASSERT_TRUE(joined.ok()) << joined.status();
  EXPECT_EQ((*joined)->Send(1, {}, [](absl::Status) {}).code(), absl::StatusCode::kNotFound);
}

TEST(TcpTest, DialsUntilThePeerIsThere) {
  const std::unique_ptr<TcpEndpoint> early = Listen();
  const std::string address = Listen()->address();
  std::future<Joined> first = std::async(std::launch::async, [&] {
    return early->Connect(Group(0, {{1, address}}), absl::Now() + kPatience);
  });
  // It is refused for a while.
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const int port = std::stoi(address.substr(address.rfind(':') + 1));
  const std::unique_ptr<TcpEndpoint> late = Listen({}, kToken, "127.0.0.1", port);
  const Joined second = late->Connect(Group(1, {{0, early->address()}}), absl::Now() + kPatience);
  ASSERT_TRUE(second.ok()) << second.status();
  const Joined joined = first.get();
  ASSERT_TRUE(joined.ok()) << joined.status();
  ExpectWorks(**joined, 0, **second, 1);
}

TEST(TcpTest, AbortEndsTheConnectThatRunsAndNoOther) {
  const std::unique_ptr<TcpEndpoint> endpoint = Listen();
  const std::unique_ptr<TcpEndpoint> peer = Listen();
  endpoint->Abort();
  std::future<Joined> aborted = std::async(std::launch::async, [&] {
    return endpoint->Connect(Group(0, {{1, peer->address()}}), absl::InfiniteFuture());
  });
  while (aborted.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready) {
    endpoint->Abort();
  }
  EXPECT_EQ(aborted.get().status().code(), absl::StatusCode::kCancelled);
  const auto [first, second] = ConnectBoth(*endpoint, Group(0, {{1, peer->address()}}), *peer,
                                           Group(1, {{0, endpoint->address()}}), kPatience);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
  ExpectWorks(**first, 0, **second, 1);
}

TEST(TcpTest, MisfitsAreRefusedAndBothSay) {
  struct Misfit {
    std::string token = kToken;
    TcpOptions options;
    std::string session = "test";
    int expected_peer = 0;
    std::string dialler_says;
    std::string acceptor_says;
  };
  const Misfit misfits[] = {
      {.token = "0123456789abcdeg",
       .options = {},
       .dialler_says = "it does not know this pipeline's secret: give all the same token file",
       .acceptor_says = "it hung up during the handshake"},
      {.options = {},
       .session = "other",
       .dialler_says = "it belongs to another session",
       .acceptor_says = "but it belongs to another session"},
      {.options = {.streams = 2},
       .dialler_says = "it wants 2 connections a link, this 3",
       .acceptor_says = "it wants 3 connections a link, this 2"},
  };
  for (const Misfit& misfit : misfits) {
    const std::unique_ptr<TcpEndpoint> at_0 = Listen(misfit.options, misfit.token);
    const std::unique_ptr<TcpEndpoint> at_1 = Listen();
    const auto [first, second] =
        ConnectBoth(*at_0, Group(0, {{1, at_1->address()}}, misfit.session), *at_1,
                    Group(1, {{0, at_0->address()}}), absl::Milliseconds(500));
    EXPECT_EQ(first.status().code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(Message(first.status()), AllOf(HasSubstr("stage 1 (" + at_1->address() + ")"),
                                               HasSubstr(misfit.dialler_says)));
    EXPECT_EQ(second.status().code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(Message(second.status()),
                AllOf(HasSubstr("stage 0 ("), HasSubstr(misfit.acceptor_says)));
  }
}

TEST(TcpTest, AStageThatNobodyExpectsIsRefused) {
  const std::unique_ptr<TcpEndpoint> at_0 = Listen();
  const std::unique_ptr<TcpEndpoint> at_2 = Listen();
  // Stage 0 was given stage 2's address for stage 1's.
  const auto [first, second] =
      ConnectBoth(*at_0, Group(0, {{1, at_2->address()}}), *at_2, Group(2, {{0, at_0->address()}}),
                  absl::Milliseconds(500));
  EXPECT_THAT(Message(first.status()), HasSubstr("it is stage 2 and has no link with stage 0"));
  EXPECT_THAT(Message(second.status()), HasSubstr("it wants stage 1, this is stage 2"));
}

TEST(TcpTest, AnEndpointJoinsOneGroupAfterTheOther) {
  const std::unique_ptr<TcpEndpoint> at_0 = Listen();
  const std::unique_ptr<TcpEndpoint> at_1 = Listen();
  for (const std::string session : {"first", "second", "third"}) {
    auto [first, second] = ConnectBoth(*at_0, Group(0, {{1, at_1->address()}}, session), *at_1,
                                       Group(1, {{0, at_0->address()}}, session), kPatience);
    ASSERT_TRUE(first.ok()) << first.status();
    ASSERT_TRUE(second.ok()) << second.status();
    ExpectWorks(**first, 0, **second, 1);
    ExpectWorks(**second, 1, **first, 0);
  }
}

// A connection that never says what a stage says.
UniqueFd Dial(const std::string& address) {
  const SocketAddress to = *SocketAddress::Parse(address);
  UniqueFd fd(socket(to.get()->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  FABRICAST_CHECK(fd.valid()) << ErrorText(errno);
  FABRICAST_CHECK(connect(fd.get(), to.get(), to.size()) == 0) << ErrorText(errno);
  return fd;
}

void Say(const UniqueFd& fd, const std::string& text) {
  (void)!send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL);
}

TEST(TcpTest, StrangersDisturbNeitherALinkNorThoseWhoJoin) {
  const std::shared_ptr<Stages> linked = Join(2, {});
  const std::unique_ptr<TcpEndpoint> at_0 = Listen();
  const std::unique_ptr<TcpEndpoint> at_1 = Listen();
  // The prefix of a good hello, of another version, and of nothing known.
  const std::string good("fabricst\1\0\0\0\0\0\0\0", 16);
  const std::string other("fabricst\7\0\0\0\0\0\0\0", 16);
  const std::string garbage(1 << 20, 'g');
  std::vector<UniqueFd> strangers;
  const auto send_strangers = [&](const std::string& address, int rounds) {
    for (int i = 0; i < rounds; ++i) {
      strangers.push_back(Dial(address));  // silent for ever
      strangers.push_back(Dial(address));
      Say(strangers.back(), good.substr(0, 3));  // and then silent
      strangers.push_back(Dial(address));
      Say(strangers.back(), good + std::string(40, 'x'));  // half a hello
      strangers.push_back(Dial(address));
      Say(strangers.back(), good + std::string(200, 'x'));  // a whole one, and a wrong proof
      strangers.push_back(Dial(address));
      Say(strangers.back(), other);
      const UniqueFd gone = Dial(address);
      Say(gone, good);
    }
  };
  // More silent ones than a listener keeps, before Connect and while it runs. What is too much for
  // them to send is sent by a thread, since nobody may read it.
  send_strangers(at_0->address(), 25);
  send_strangers(at_1->address(), 25);
  std::future<Joined> waiting = std::async(std::launch::async, [&] {
    return at_1->Connect(Group(1, {{0, at_0->address()}}), absl::Now() + kPatience);
  });
  UniqueFd flood = Dial(at_1->address());
  std::thread flooder([&] { Say(flood, garbage); });
  send_strangers(at_1->address(), 10);
  const Joined first = at_0->Connect(Group(0, {{1, at_1->address()}}), absl::Now() + kPatience);
  const Joined second = waiting.get();
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
  // Nobody accepts there now.
  send_strangers(at_1->address(), 2);
  send_strangers(linked->endpoints[0]->address(), 10);
  ExpectWorks(**first, 0, **second, 1);
  ExpectWorks(**second, 1, **first, 0);
  ExpectWorks(*linked->ends[0], 0, *linked->ends[1], 1);
  EXPECT_EQ(linked->broken[0]->outcome.times(), 0u);
  shutdown(flood.get(), SHUT_RDWR);
  flooder.join();
}

TEST(TcpTest, AStrangerIsToldItsWrongVersionAndSentAway) {
  const std::unique_ptr<TcpEndpoint> endpoint = Listen();
  const UniqueFd stranger = Dial(endpoint->address());
  Say(stranger, std::string("fabricst\7\0\0\0\0\0\0\0", 16));
  const Joined joined =
      endpoint->Connect(Group(1, {{0, "127.0.0.1:9"}}), absl::Now() + absl::Milliseconds(300));
  EXPECT_THAT(Message(joined.status()), AllOf(HasSubstr("somebody dialled from 127.0.0.1:"),
                                              HasSubstr("it has wire version 7, this 1")));
  char verdict[25];
  ASSERT_EQ(recv(stranger.get(), verdict, sizeof(verdict), MSG_WAITALL), 24);
  EXPECT_EQ(std::string(verdict, 16), std::string("fabricst\1\0\0\0\1\0\0\0", 16));
}

TEST(TcpTest, BrokenLinksAreToldOnceEvenIfIdleAndCloseTellsItsOwnEndNothing) {
  {
    const std::shared_ptr<Stages> stages = Join(3, {}, /*relays=*/true);
    stages->relay(0, 2).Reset();
    for (const int stage : {0, 2}) {
      ASSERT_TRUE(stages->broken[stage]->outcome.Came(1));
      const absl::Status told = stages->broken[stage]->outcome.Wait();
      EXPECT_EQ(told.code(), absl::StatusCode::kUnavailable) << told;
      EXPECT_THAT(Message(told), HasSubstr(stage == 0 ? "stage 2 (" : "stage 0 ("));
      Outcome none;
      EXPECT_EQ(stages->ends[stage]->Send(2 - stage, {}, none.done()), told);
    }
    ExpectWorks(*stages->ends[0], 0, *stages->ends[1], 1);
    EXPECT_EQ(stages->broken[1]->outcome.times(), 0u);
  }
  const std::shared_ptr<Stages> stages = Join(2, {});
  Bytes buffer(4);
  Outcome pending;
  ASSERT_TRUE(stages->ends[0]->Receive(1, absl::MakeSpan(buffer), pending.done()).ok());
  stages->ends[0]->Close();
  EXPECT_EQ(pending.Wait().code(), absl::StatusCode::kCancelled);
  ASSERT_TRUE(stages->broken[1]->outcome.Came(1));
  EXPECT_EQ(stages->broken[1]->outcome.Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(Message(stages->broken[1]->outcome.Wait()), HasSubstr("closed by stage 0"));
  stages->ends[1]->Close();
  stages->ends.clear();
  EXPECT_EQ(stages->broken[0]->outcome.times(), 0u);
  EXPECT_EQ(stages->broken[1]->outcome.times(), 1u);
}

TEST(TcpTest, AProcessThatEndsInTheMidstOfAMessageIsGone) {
  for (const bool reset : {true, false}) {
    for (const int streams : {1, 3}) {
      const std::shared_ptr<Stages> stages = Join(2, {.streams = streams}, /*relays=*/true);
      Relay& relay = stages->relay(0, 1);
      const Bytes sent(64 * kMiB, std::byte{1});
      Bytes received(sent.size());
      Outcome sends, receives;
      relay.StopAfter(5 * kMiB);
      for (int i = 0; i < 2; ++i) {
        ASSERT_TRUE(stages->ends[0]->Send(1, sent, sends.done()).ok());
        ASSERT_TRUE(stages->ends[1]->Receive(0, absl::MakeSpan(received), receives.done()).ok());
      }
      relay.WaitUntilStopped();
      reset ? relay.Reset() : relay.Finish();
      EXPECT_EQ(sends.Wait(2).code(), absl::StatusCode::kUnavailable) << sends.Wait(2);
      EXPECT_THAT(Message(sends.Wait(2)), HasSubstr("stage 1 ("));
      EXPECT_EQ(receives.Wait(2).code(), absl::StatusCode::kUnavailable) << receives.Wait(2);
      EXPECT_THAT(Message(receives.Wait(2)), HasSubstr("stage 0 ("));
    }
  }
}

TEST(TcpTest, CloseInTheMidstOfAMessageGivesTheBuffersBackAtOnce) {
  for (const int closer : {0, 1}) {
    const std::shared_ptr<Stages> stages = Join(2, {.streams = 2}, /*relays=*/true);
    Relay& relay = stages->relay(0, 1);
    Bytes sent(64 * kMiB, std::byte{1});
    Bytes received(sent.size());
    Outcome send, receive;
    relay.StopAfter(5 * kMiB);
    ASSERT_TRUE(stages->ends[0]->Send(1, sent, send.done()).ok());
    ASSERT_TRUE(stages->ends[1]->Receive(0, absl::MakeSpan(received), receive.done()).ok());
    relay.WaitUntilStopped();
    stages->ends[closer]->Close();
    Outcome& own = closer == 0 ? send : receive;
    EXPECT_EQ(own.times(), 1u);
    EXPECT_EQ(own.Wait().code(), absl::StatusCode::kCancelled);
    std::memset(sent.data(), 2, closer == 0 ? sent.size() : 0);
    std::memset(received.data(), 3, closer == 1 ? received.size() : 0);
    stages->ends.clear();
    EXPECT_EQ(receive.times() + send.times(), 2u);
    if (closer == 1) {
      EXPECT_EQ(std::memcmp(received.data(), received.data() + 1, received.size() - 1), 0);
    }
  }
}

TEST(TcpTest, ACutLinkIsFoundDeadWhetherIdleOrNot) {
  for (const bool idle : {true, false}) {
    const std::shared_ptr<Stages> stages =
        Join(2, {.streams = 2, .dead_after = absl::Seconds(1)}, /*relays=*/true);
    const Bytes sent(64 * kMiB, std::byte{1});
    Bytes received(sent.size());
    Outcome send, receive;
    if (!idle) {
      stages->relay(0, 1).StopAfter(5 * kMiB);
      ASSERT_TRUE(stages->ends[0]->Send(1, sent, send.done()).ok());
      ASSERT_TRUE(stages->ends[1]->Receive(0, absl::MakeSpan(received), receive.done()).ok());
      stages->relay(0, 1).WaitUntilStopped();
    }
    stages->relay(0, 1).Cut();
    for (const int stage : {0, 1}) {
      ASSERT_TRUE(stages->broken[stage]->outcome.Came(1));
      const absl::Status told = stages->broken[stage]->outcome.Wait();
      EXPECT_EQ(told.code(), absl::StatusCode::kUnavailable) << told;
      EXPECT_THAT(Message(told), HasSubstr("timed out"));
    }
    if (!idle) {
      EXPECT_EQ(send.Wait().code(), absl::StatusCode::kUnavailable);
      EXPECT_EQ(receive.Wait().code(), absl::StatusCode::kUnavailable);
    }
  }
}

TEST(TcpTest, AReceiverThatPostsLateIsNotDead) {
  const std::shared_ptr<Stages> stages = Join(2, {.dead_after = absl::Seconds(1)});
  const Bytes sent(64 * kMiB, std::byte{1});
  Bytes received(sent.size());
  Outcome send, receive;
  ASSERT_TRUE(stages->ends[0]->Send(1, sent, send.done()).ok());
  // Nothing tells that nothing happens: more than dead_after, and the second that it may be late.
  std::this_thread::sleep_for(std::chrono::milliseconds(3500));
  EXPECT_EQ(send.times(), 0u);
  ASSERT_TRUE(stages->ends[1]->Receive(0, absl::MakeSpan(received), receive.done()).ok());
  EXPECT_TRUE(receive.Wait().ok()) << receive.Wait();
  EXPECT_TRUE(send.Wait().ok()) << send.Wait();
  EXPECT_EQ(received, sent);
}

}  // namespace
}  // namespace fabricast
