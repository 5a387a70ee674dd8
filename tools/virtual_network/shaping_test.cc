// How exact the rates of cables are: README.md has the figures that this prints.
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tools/virtual_network/test_network.h"
#include "tools/virtual_network/virtual_network.h"

namespace fabricast {
namespace {

constexpr int kPort = 5000;
constexpr int64_t kMessage = 64 << 10;
constexpr int64_t kLongMessage = 1 << 20;
// Before each message: the bucket of a shaper fills up, and what it holds passes at once.
constexpr absl::Duration kPause = absl::Milliseconds(3);

int64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

struct Header {
  int64_t bytes = 0;  // with this
  int64_t sent_ns = 0;
};

// A frame of 1538 bytes on the wire (with preamble, check and gap) carries 1448 of a message.
double ExpectedSeconds(int64_t bytes, double rate_mbit) {
  return static_cast<double>(bytes) * 1538 / 1448 * 8 / (rate_mbit * 1e6);
}

// Answers each message with the nanoseconds that it took.
int TimeMessages() {
  const FileDescriptor client = Accept(Listen(kPort));
  std::vector<char> rest(kLongMessage);
  Header header;
  while (ReceiveAll(client, &header, sizeof(header))) {
    if (!ReceiveAll(client, rest.data(), header.bytes - sizeof(header))) return 1;
    const int64_t took_ns = NowNs() - header.sent_ns;
    if (!SendAll(client, &took_ns, sizeof(took_ns))) return 1;
  }
  return 0;
}

// The median of some messages; -1 if the connection breaks.
double Seconds(const FileDescriptor& server, int64_t bytes, int count) {
  std::vector<char> message(bytes);
  std::vector<double> seconds;
  for (int i = 0; i < count; ++i) {
    absl::SleepFor(kPause);
    const Header header{.bytes = bytes, .sent_ns = NowNs()};
    std::copy_n(reinterpret_cast<const char*>(&header), sizeof(header), message.data());
    int64_t took_ns = 0;
    if (!SendAll(server, message.data(), message.size()) ||
        !ReceiveAll(server, &took_ns, sizeof(took_ns))) {
      return -1;
    }
    seconds.push_back(static_cast<double>(took_ns) * 1e-9);
  }
  std::nth_element(seconds.begin(), seconds.begin() + count / 2, seconds.end());
  return seconds[count / 2];
}

// In a fork on the sender's host: 0 if messages take what they should at that rate, within 15 %.
// A busy machine gets several tries.
int CheckRate(const std::string& ip, double rate_mbit) {
  const FileDescriptor server = Connect(ip, kPort, absl::Now() + kPatience);
  if (server.get() < 0) return 2;
  for (int attempt = 0; attempt < 8; ++attempt) {
    bool exact = true;
    for (const auto& [bytes, count] : {std::pair(kMessage, 11), std::pair(kLongMessage, 3)}) {
      const double ratio = Seconds(server, bytes, count) / ExpectedSeconds(bytes, rate_mbit);
      printf("%g Mbit/s, %4ld KiB: %.3f of the time expected\n", rate_mbit, bytes >> 10, ratio);
      exact = exact && std::abs(ratio - 1) <= 0.15;
    }
    if (exact) return 0;
  }
  return 1;
}

class ShapingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = WhyNoVirtualNetwork();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }

  void MakeNetwork(const std::vector<VirtualHost>& hosts) {
    absl::StatusOr<std::unique_ptr<VirtualNetwork>> made = VirtualNetwork::Make(hosts);
    ASSERT_TRUE(made.ok()) << made.status();
    network_ = *std::move(made);
  }

  // From `from` to `to`.
  void ExpectRate(const std::string& from, const std::string& to, double rate_mbit) {
    absl::StatusOr<std::unique_ptr<HostProcess>> receiver = network_->Fork(to, TimeMessages);
    ASSERT_TRUE(receiver.ok()) << receiver.status();
    const std::string ip = network_->ip(to);
    absl::StatusOr<std::unique_ptr<HostProcess>> sender =
        network_->Fork(from, [&] { return CheckRate(ip, rate_mbit); });
    ASSERT_TRUE(sender.ok()) << sender.status();
    const absl::StatusOr<int> status = (*sender)->Wait(2 * kPatience);
    ASSERT_TRUE(status.ok()) << status.status();
    EXPECT_EQ(*status, 0) << from << " to " << to << " at " << rate_mbit << " Mbit/s";
  }

  std::unique_ptr<VirtualNetwork> network_;
};

TEST_F(ShapingTest, MessagesTakeTheirBytesOnTheWireAtTheRate) {
  MakeNetwork({{.name = "a"}, {.name = "b"}});
  for (const double rate_mbit : {25, 50, 100, 200, 400}) {
    for (const char* host : {"a", "b"}) ASSERT_TRUE(network_->SetRate(host, rate_mbit).ok());
    ExpectRate("a", "b", rate_mbit);
  }
}

TEST_F(ShapingTest, TheSlowerCableSetsTheRateInEachDirection) {
  MakeNetwork({{.name = "slow", .rate_mbit = 40}, {.name = "fast"}, {.name = "faster"}});
  ExpectRate("slow", "fast", 40);
  ExpectRate("fast", "slow", 40);
  ASSERT_TRUE(network_->SetRate("fast", 80).ok());
  ExpectRate("faster", "fast", 80);
}

TEST_F(ShapingTest, ADisturbedCableKeepsItsRate) {
  MakeNetwork({{.name = "a", .rate_mbit = 50}, {.name = "b"}});
  ASSERT_TRUE(network_->Disturb("a", {}).ok());
  ExpectRate("a", "b", 50);
  ExpectRate("b", "a", 50);
}

// 1 MiB in 8.9 s at 1 Mbit/s; a hundredth of that says that nothing holds it back.
TEST_F(ShapingTest, RateZeroIsNoLimit) {
  MakeNetwork({{.name = "a", .rate_mbit = 1}, {.name = "b", .rate_mbit = 1}});
  for (const char* host : {"a", "b", "a"}) ASSERT_TRUE(network_->SetRate(host, 0).ok());
  absl::StatusOr<std::unique_ptr<HostProcess>> receiver = network_->Fork("b", TimeMessages);
  ASSERT_TRUE(receiver.ok()) << receiver.status();
  const std::string ip = network_->ip("b");
  absl::StatusOr<std::unique_ptr<HostProcess>> sender = network_->Fork("a", [&] {
    const FileDescriptor server = Connect(ip, kPort, absl::Now() + kPatience);
    for (int attempt = 0; attempt < 20; ++attempt) {
      const double seconds = Seconds(server, kLongMessage, 3);
      if (seconds < 0) return 2;
      if (seconds < ExpectedSeconds(kLongMessage, 100)) return 0;
    }
    return 1;
  });
  ASSERT_TRUE(sender.ok()) << sender.status();
  EXPECT_EQ((*sender)->Wait(2 * kPatience).value_or(-1), 0);
}

}  // namespace
}  // namespace fabricast
