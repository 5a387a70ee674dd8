#include "runtime/launch/local_addresses.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>

#include <algorithm>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::AnyOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

TEST(HostPortTest, ReadsNamesAndAddressesWithAndWithoutPort) {
  const struct {
    const char* text;
    const char* host;
    std::optional<int> port;
  } kCases[] = {
      {"node1", "node1", std::nullopt},
      {"node1:29500", "node1", 29500},
      {"10.0.0.2:0", "10.0.0.2", 0},
      {"job-0.job:65535", "job-0.job", 65535},
      {"::1", "::1", std::nullopt},
      {"fd00::2", "fd00::2", std::nullopt},
      {"[fd00::2]", "fd00::2", std::nullopt},
      {"[fd00::2]:29500", "fd00::2", 29500},
      {"[fe80::1%eth0]:1", "fe80::1%eth0", 1},
  };
  for (const auto& test : kCases) {
    const absl::StatusOr<HostPort> address = ParseHostPort(test.text);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(address->host, test.host);
    EXPECT_EQ(address->port, test.port);
  }
}

TEST(HostPortTest, WritesWhatItReads) {
  for (const char* const text : {"node1", "node1:29500", "10.0.0.2:0", "fd00::2", "[::1]:80"}) {
    EXPECT_EQ(FormatHostPort(*ParseHostPort(text)), text);
  }
}

TEST(HostPortTest, AnErrorQuotesTheTextAndSaysWhy) {
  const auto error = [](const std::string& text) {
    const absl::StatusOr<HostPort> address = ParseHostPort(text);
    EXPECT_EQ(address.status().code(), absl::StatusCode::kInvalidArgument) << text;
    return std::string(address.status().message());
  };
  EXPECT_EQ(error("node1:http"),
            "\"node1:http\": the port is a number of 0 to 65535; an address is HOST, HOST:PORT or "
            "[IPV6]:PORT");
  for (const char* const text :
       {"a:", "a:65536", "a:-1", "a:+1", "a: 1", "a:1 ", "a:000001", "[::1]:"}) {
    EXPECT_THAT(error(text), HasSubstr("the port is a number"));
  }
  for (const char* const text : {"", ":80"})
    EXPECT_THAT(error(text), HasSubstr("there is no host"));
  EXPECT_THAT(error("[::1"), HasSubstr("not closed"));
  EXPECT_THAT(error("[::1]80"), HasSubstr("after a colon"));
  EXPECT_THAT(error("[a]:80"), HasSubstr("no IPv6 address"));
  EXPECT_THAT(error("[a:80]:80"), HasSubstr("no IPv6 address"));
  EXPECT_THAT(error("[]:80"), HasSubstr("no IPv6 address"));
  for (const char* const text : {"a b:1", "a\n:1", "a/b:1", "a,b:1", "a]:1", "http://a"}) {
    EXPECT_THAT(error(text), AnyOf(HasSubstr("no such character"), HasSubstr("the port")));
  }
  EXPECT_THAT(error(std::string(254, 'a')), HasSubstr("too long"));
}

TEST(ResolveHostTest, AnIpAddressIsItsOwn) {
  EXPECT_THAT(*ResolveHost("10.1.2.3"), ElementsAre("10.1.2.3"));
  EXPECT_THAT(*ResolveHost("fd00::2"), ElementsAre("fd00::2"));
}

TEST(ResolveHostTest, LocalhostIsThisMachine) {
  const absl::StatusOr<std::vector<std::string>> addresses = ResolveHost("localhost");
  ASSERT_TRUE(addresses.ok()) << addresses.status();
  EXPECT_THAT(*addresses, Not(IsEmpty()));
  EXPECT_THAT(*addresses, Each(AnyOf("127.0.0.1", "::1")));
  EXPECT_EQ(std::count(addresses->begin(), addresses->end(), "127.0.0.1"), 1);
}

TEST(ResolveHostTest, AHostThatIsNotThereIsNamed) {
  // No resolver knows it (RFC 6761); where there is no network none may answer.
  const absl::Status status = ResolveHost("nowhere.invalid").status();
  EXPECT_THAT(status.code(), AnyOf(absl::StatusCode::kNotFound, absl::StatusCode::kUnavailable));
  EXPECT_THAT(std::string(status.message()), HasSubstr("host nowhere.invalid: "));
  EXPECT_THAT(std::string(status.message()), HasSubstr("give an IP address"));
  EXPECT_EQ(ResolveHost("").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(IsLocalAddressTest, LoopbackIsLocal) {
  EXPECT_TRUE(*IsLocalAddress("127.0.0.1"));
  // As Debian's /etc/hosts calls the machine itself.
  EXPECT_TRUE(*IsLocalAddress("127.0.1.1"));
}

TEST(IsLocalAddressTest, EveryInterfacesAddressIsLocal) {
  ifaddrs* interfaces = nullptr;
  ASSERT_EQ(getifaddrs(&interfaces), 0);
  int seen = 0;
  for (const ifaddrs* entry = interfaces; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr) continue;
    char text[INET6_ADDRSTRLEN];
    const int family = entry->ifa_addr->sa_family;
    const void* const bytes =
        family == AF_INET ? static_cast<const void*>(
                                &reinterpret_cast<const sockaddr_in*>(entry->ifa_addr)->sin_addr)
                          : &reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr)->sin6_addr;
    if (family != AF_INET && family != AF_INET6) continue;
    ASSERT_NE(inet_ntop(family, bytes, text, sizeof(text)), nullptr);
    EXPECT_TRUE(*IsLocalAddress(text)) << text;
    ++seen;
  }
  freeifaddrs(interfaces);
  EXPECT_GT(seen, 0);
}

TEST(IsLocalAddressTest, OthersAddressesAreNot) {
  // Kept for documentation (RFC 5737, RFC 3849); and nobody's.
  for (const char* const ip : {"192.0.2.1", "2001:db8::1", "0.0.0.0", "::", "255.255.255.255"}) {
    EXPECT_FALSE(*IsLocalAddress(ip)) << ip;
  }
}

TEST(IsLocalAddressTest, WhatIsNoIpAddressIsQuoted) {
  for (const char* const text :
       {"", "localhost", "1", "127.1", "127.0.0.1:80", "[::1]", "1.2.3.4.5"}) {
    const absl::StatusOr<bool> local = IsLocalAddress(text);
    EXPECT_EQ(local.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(local.status().message()),
                HasSubstr("\"" + std::string(text) + "\" is no IP address"));
  }
}

}  // namespace
}  // namespace fabricast
