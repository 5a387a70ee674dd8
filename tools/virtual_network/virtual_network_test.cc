#include "tools/virtual_network/virtual_network.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/virtual_network/test_network.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

constexpr int kPort = 5000;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

class VirtualNetworkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = WhyNoVirtualNetwork();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }

  void MakeNetwork(const std::vector<VirtualHost>& hosts,
                   const VirtualNetworkOptions& options = {}) {
    absl::StatusOr<std::unique_ptr<VirtualNetwork>> made = VirtualNetwork::Make(hosts, options);
    ASSERT_TRUE(made.ok()) << made.status();
    network_ = *std::move(made);
  }

  // Of `body` on the host.
  int ExitStatus(const std::string& host, const std::function<int()>& body) {
    absl::StatusOr<std::unique_ptr<HostProcess>> process = network_->Fork(host, body);
    EXPECT_TRUE(process.ok()) << process.status();
    const absl::StatusOr<int> status = (*process)->Wait(kPatience);
    EXPECT_TRUE(status.ok()) << status.status();
    return status.value_or(-1);
  }

  // Answers each connection's number with the number + 1.
  std::unique_ptr<HostProcess> StartServer(const std::string& host) {
    absl::StatusOr<std::unique_ptr<HostProcess>> server = network_->Fork(host, [] {
      const FileDescriptor listening = Listen(kPort);
      while (true) {
        const FileDescriptor client = Accept(listening);
        int number = 0;
        if (!ReceiveAll(client, &number, sizeof(number))) continue;
        ++number;
        SendAll(client, &number, sizeof(number));
      }
      return 0;
    });
    EXPECT_TRUE(server.ok()) << server.status();
    return *std::move(server);
  }

  bool Reaches(const std::string& from, const std::string& to) {
    const std::string ip = network_->ip(to);
    return ExitStatus(from, [&ip] {
             const FileDescriptor server = Connect(ip, kPort, absl::Now() + kPatience);
             int number = 41;
             return server.get() >= 0 && SendAll(server, &number, sizeof(number)) &&
                            ReceiveAll(server, &number, sizeof(number)) && number == 42
                        ? 0
                        : 1;
           }) == 0;
  }

  std::string PrintedBy(const std::string& host, const std::vector<std::string>& command) {
    const std::string output = absl::StrCat(::testing::TempDir(), "/printed");
    unlink(output.c_str());
    absl::StatusOr<std::unique_ptr<HostProcess>> program =
        network_->Start(host, command, {.output_file = output});
    EXPECT_TRUE(program.ok()) << program.status();
    EXPECT_EQ((*program)->Wait(kPatience).value_or(-1), 0);
    return ReadFile(output);
  }

  // Sends back each number that comes as a datagram.
  std::unique_ptr<HostProcess> StartEcho(const std::string& host, const std::string& back_to) {
    const std::string ip = network_->ip(back_to);
    absl::StatusOr<std::unique_ptr<HostProcess>> echo = network_->Fork(host, [ip] {
      const FileDescriptor socket = OpenDatagrams(kPort);
      while (true) {
        const int number = ReceiveDatagram(socket, absl::Now() + kPatience);
        if (number < 0) return 1;
        SendDatagram(socket, ip, kPort, number);
      }
    });
    EXPECT_TRUE(echo.ok()) << echo.status();
    return *std::move(echo);
  }

  // How many of `count` datagrams to `to` come back.
  int Echoes(const std::string& from, const std::string& to, int count, absl::Duration patience) {
    const std::string ip = network_->ip(to);
    int came_back = -1;
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    EXPECT_EQ(ExitStatus(from,
                         [&] {
                           const FileDescriptor socket = OpenDatagrams(kPort);
                           std::set<int> back;  // some may come after their time
                           for (int i = 0; i < count; ++i) {
                             SendDatagram(socket, ip, kPort, i);
                             const absl::Time deadline = absl::Now() + patience;
                             while (!back.contains(i)) {
                               const int number = ReceiveDatagram(socket, deadline);
                               if (number < 0) break;
                               back.insert(number);
                             }
                           }
                           const int answered = static_cast<int>(back.size());
                           return write(ends[1], &answered, sizeof(answered)) < 0 ? 1 : 0;
                         }),
              0);
    EXPECT_EQ(read(ends[0], &came_back, sizeof(came_back)),
              static_cast<ssize_t>(sizeof(came_back)));
    close(ends[0]);
    close(ends[1]);
    return came_back;
  }

  std::unique_ptr<VirtualNetwork> network_;
};

TEST_F(VirtualNetworkTest, EveryHostReachesEveryOther) {
  const std::vector<VirtualHost> hosts = {{.name = "a"}, {.name = "b"}, {.name = "c"}};
  MakeNetwork(hosts);
  for (const VirtualHost& to : hosts) {
    const std::unique_ptr<HostProcess> server = StartServer(to.name);
    for (const VirtualHost& from : hosts) {
      EXPECT_TRUE(Reaches(from.name, to.name)) << from.name << " to " << to.name;
    }
  }
}

TEST_F(VirtualNetworkTest, HostsAreNumberedInTheirOrder) {
  MakeNetwork({{.name = "left"}, {.name = "right"}});
  EXPECT_EQ(network_->ip("left"), "10.77.0.1");
  EXPECT_EQ(network_->ip("right"), "10.77.0.2");
}

TEST_F(VirtualNetworkTest, AHostHasItsCableAndALoopbackOfItsOwn) {
  MakeNetwork({{.name = "a"}, {.name = "b"}});
  EXPECT_EQ(ExitStatus("a",
                       [] {
                         return InterfaceNames() == std::vector<std::string>{"eth0", "lo"} ? 0 : 1;
                       }),
            0);
  const std::unique_ptr<HostProcess> server = StartServer("a");
  const auto connect = [] {
    return Connect("127.0.0.1", kPort, absl::Now() + kPatience).get() >= 0 ? 0 : 1;
  };
  EXPECT_EQ(ExitStatus("a", connect), 0);
  EXPECT_EQ(ExitStatus("b", [] { return ConnectError("127.0.0.1", kPort); }), ECONNREFUSED);
}

TEST_F(VirtualNetworkTest, TheMachinesOwnNetworkIsOutOfReachAndUnchanged) {
  const std::vector<std::string> before = InterfaceNames();
  MakeNetwork({{.name = "a", .rate_mbit = 100}, {.name = "b"}});
  ASSERT_TRUE(network_->Disturb("a", {.loss = 0.5}).ok());
  EXPECT_EQ(InterfaceNames(), before);
  const FileDescriptor listening = Listen(0);  // on the machine
  const int port = PortOf(listening);
  EXPECT_EQ(ConnectError("127.0.0.1", port), 0);
  EXPECT_EQ(ExitStatus("a", [port] { return ConnectError("127.0.0.1", port); }), ECONNREFUSED);
  // Nor is there a way out.
  EXPECT_EQ(ExitStatus("a", [] { return ConnectError("192.0.2.1", 80); }), ENETUNREACH);
}

TEST_F(VirtualNetworkTest, NetworksOfTheSameAddressesDoNotMeet) {
  MakeNetwork({{.name = "a"}, {.name = "b"}});
  absl::StatusOr<std::unique_ptr<VirtualNetwork>> other =
      VirtualNetwork::Make({{.name = "a"}, {.name = "b"}});
  ASSERT_TRUE(other.ok()) << other.status();
  const std::unique_ptr<HostProcess> server = StartServer("b");
  EXPECT_TRUE(Reaches("a", "b"));
  network_.swap(*other);
  EXPECT_EQ(ExitStatus("a", [] { return ConnectError("10.77.0.2", kPort); }), ECONNREFUSED);
}

TEST_F(VirtualNetworkTest, ACutCableCarriesNothingUntilItIsRestored) {
  MakeNetwork({{.name = "a"}, {.name = "b"}, {.name = "c"}});
  const std::unique_ptr<HostProcess> echo = StartEcho("b", "a");
  const std::unique_ptr<HostProcess> server = StartServer("c");
  EXPECT_GT(Echoes("a", "b", 20, absl::Milliseconds(500)), 0);
  ASSERT_TRUE(network_->Cut("b").ok());
  EXPECT_EQ(ExitStatus("b", [] { return CarrierBecomes(false) ? 0 : 1; }), 0);
  EXPECT_EQ(Echoes("a", "b", 20, absl::Milliseconds(10)), 0);
  EXPECT_TRUE(Reaches("a", "c"));
  ASSERT_TRUE(network_->Restore("b").ok());
  EXPECT_EQ(ExitStatus("b", [] { return CarrierBecomes(true) ? 0 : 1; }), 0);
  EXPECT_GT(Echoes("a", "b", 20, absl::Milliseconds(500)), 0);
}

// Each of 1,000 numbers goes over the cable and comes back over it: lost with a probability of
// 1 - 0.95^2 = 0.0975, 97.5 +- 9.4 of them; five deviations are 47.
TEST_F(VirtualNetworkTest, AsManyFramesAreLostAsAreAskedFor) {
  MakeNetwork({{.name = "a"}, {.name = "b"}}, {.seed = 7});
  const std::unique_ptr<HostProcess> echo = StartEcho("b", "a");
  EXPECT_GT(Echoes("a", "b", 20, absl::Milliseconds(500)), 0);  // they know each other's address
  ASSERT_TRUE(network_->Disturb("b", {.loss = 0.05}).ok());
  const int came_back = Echoes("a", "b", 1000, absl::Milliseconds(10));
  EXPECT_NEAR(came_back, 902.5, 47);
  ASSERT_TRUE(network_->Disturb("b", {.loss = 0.5}).ok());
  // 0.25 of 400: 100 +- 8.7.
  EXPECT_NEAR(Echoes("a", "b", 400, absl::Milliseconds(10)), 100, 44);
  ASSERT_TRUE(network_->Disturb("b", {}).ok());
  EXPECT_EQ(Echoes("a", "b", 200, absl::Milliseconds(500)), 200);
}

TEST_F(VirtualNetworkTest, LosingEverythingLeavesTheCarrierWhereItIs) {
  MakeNetwork({{.name = "a"}, {.name = "b"}});
  const std::unique_ptr<HostProcess> echo = StartEcho("b", "a");
  ASSERT_TRUE(network_->Disturb("b", {.loss = 1}).ok());
  EXPECT_EQ(ExitStatus("b", [] { return CarrierBecomes(true) ? 0 : 1; }), 0);
  EXPECT_EQ(Echoes("a", "b", 20, absl::Milliseconds(10)), 0);
}

TEST_F(VirtualNetworkTest, FramesAreDelayedInEachDirection) {
  MakeNetwork({{.name = "a"}, {.name = "b"}});
  const std::unique_ptr<HostProcess> server = StartServer("b");
  ASSERT_TRUE(network_->Disturb("b", {.delay = absl::Milliseconds(50)}).ok());
  EXPECT_TRUE(Reaches("a", "b"));  // they know each other's address
  // The connection and the answer: two ways there and back. The machine may be busy for a while.
  absl::Duration least = absl::InfiniteDuration();
  for (int i = 0; i < 20 && least > absl::Milliseconds(300); ++i) {
    const absl::Time start = absl::Now();
    EXPECT_TRUE(Reaches("a", "b"));
    least = std::min(least, absl::Now() - start);
  }
  EXPECT_GE(least, absl::Milliseconds(4 * 50));
  EXPECT_LE(least, absl::Milliseconds(300));
}

TEST_F(VirtualNetworkTest, ADisturbedCableCarriesAllBytesOfAConnection) {
  MakeNetwork({{.name = "a", .rate_mbit = 100}, {.name = "b", .rate_mbit = 100}});
  ASSERT_TRUE(network_->Disturb("a", {.loss = 0.01, .delay = absl::Milliseconds(1)}).ok());
  constexpr int kNumbers = 250'000;
  absl::StatusOr<std::unique_ptr<HostProcess>> sink = network_->Fork("b", [] {
    const FileDescriptor client = Accept(Listen(kPort));
    for (int i = 0; i < kNumbers; ++i) {
      int number = -1;
      if (!ReceiveAll(client, &number, sizeof(number)) || number != i) return 1;
    }
    return 0;
  });
  ASSERT_TRUE(sink.ok()) << sink.status();
  const std::string ip = network_->ip("b");
  EXPECT_EQ(ExitStatus("a",
                       [ip] {
                         std::vector<int> numbers(kNumbers);
                         for (int i = 0; i < kNumbers; ++i) numbers[i] = i;
                         const FileDescriptor server = Connect(ip, kPort, absl::Now() + kPatience);
                         return SendAll(server, numbers.data(), numbers.size() * sizeof(int)) ? 0
                                                                                              : 1;
                       }),
            0);
  const absl::StatusOr<int> status = (*sink)->Wait(kPatience);
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(*status, 0);
}

TEST_F(VirtualNetworkTest, CutAlsoHoldsForADisturbedCable) {
  MakeNetwork({{.name = "a"}, {.name = "b"}});
  const std::unique_ptr<HostProcess> echo = StartEcho("b", "a");
  ASSERT_TRUE(network_->Disturb("b", {}).ok());
  EXPECT_GT(Echoes("a", "b", 20, absl::Milliseconds(500)), 0);
  ASSERT_TRUE(network_->Cut("b").ok());
  EXPECT_EQ(Echoes("a", "b", 20, absl::Milliseconds(10)), 0);
  ASSERT_TRUE(network_->Restore("b").ok());
  EXPECT_GT(Echoes("a", "b", 20, absl::Milliseconds(500)), 0);
}

TEST_F(VirtualNetworkTest, AProgramRunsOnItsHost) {
  MakeNetwork({{.name = "a"}, {.name = "b"}});
  EXPECT_THAT(PrintedBy("b", {"ip", "-brief", "-4", "address"}), HasSubstr("10.77.0.2/24"));
}

// Else a packet of many frames would be shaped and lost as one.
TEST_F(VirtualNetworkTest, APacketIsAFrameOfTheSizeAskedFor) {
  MakeNetwork({{.name = "a"}, {.name = "b"}}, {.mtu_bytes = 9000});
  const std::string link = PrintedBy("a", {"ip", "-details", "link", "show", "dev", "eth0"});
  EXPECT_THAT(link, HasSubstr("mtu 9000 "));
  EXPECT_THAT(link, HasSubstr("gso_max_segs 1 "));
  const std::unique_ptr<HostProcess> server = StartServer("b");
  EXPECT_TRUE(Reaches("a", "b"));
}

TEST_F(VirtualNetworkTest, MistakesAreNamed) {
  using Hosts = std::vector<VirtualHost>;
  const auto message = [](const Hosts& hosts) {
    return std::string(VirtualNetwork::Make(hosts).status().message());
  };
  EXPECT_THAT(message({{.name = "a"}}), HasSubstr("1 hosts: give 2 to 253"));
  EXPECT_THAT(message({{.name = "a"}, {.name = "a"}}), HasSubstr("host 'a'"));
  EXPECT_THAT(message({{.name = "a"}, {.name = ""}}), HasSubstr("host ''"));
  EXPECT_THAT(message({{.name = "a"}, {.name = "b", .rate_mbit = -1}}),
              HasSubstr("host b: rate_mbit is -1"));
  EXPECT_THAT(message({{.name = "a"}, {.name = "b", .rate_mbit = std::nan("")}}),
              HasSubstr("host b: rate_mbit is nan"));

  MakeNetwork({{.name = "a"}, {.name = "b"}});
  EXPECT_EQ(network_->SetRate("a", 1e9).code(), absl::StatusCode::kInvalidArgument);
  for (const Disturbance& wrong : {Disturbance{.loss = 1.5}, Disturbance{.loss = std::nan("")},
                                   Disturbance{.delay = absl::Seconds(-1)}}) {
    EXPECT_EQ(network_->Disturb("a", wrong).code(), absl::StatusCode::kInvalidArgument);
  }
  for (const absl::Status& status :
       {network_->Cut("z"), network_->Restore("z"), network_->SetRate("z", 1),
        network_->Disturb("z", {}), network_->Start("z", {"true"}).status(),
        network_->Fork("z", [] { return 0; }).status()}) {
    EXPECT_EQ(status, absl::NotFoundError("virtual network: no host is called z; there are a, b"));
  }
}

}  // namespace
}  // namespace fabricast
