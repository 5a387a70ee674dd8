#include "runtime/transport/tcp_socket.h"

#include <fcntl.h>
#include <unistd.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

TEST(SocketAddressTest, IsPrintedAsItIsParsed) {
  for (const char* const text : {"10.0.0.2:41234", "127.0.0.1:0", "[::1]:65535", "[fd00::2]:80"}) {
    const absl::StatusOr<SocketAddress> address = SocketAddress::Parse(text);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(address->ToString(), text);
  }
}

TEST(SocketAddressTest, RefusesWhatIsNoAddressAndSaysHowToWriteOne) {
  for (const char* const text :
       {"", "10.0.0.2", "10.0.0.2:", "10.0.0.2:port", "10.0.0.2:65536", "10.0.0.2:-1", ":80",
        "10.0.0:x:80", "::1:80", "[::1]", "[::1:80", "localhost:80", "[]:80", "10.0.0.256:80"}) {
    EXPECT_EQ(SocketAddress::Parse(text).status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
  EXPECT_THAT(std::string(SocketAddress::Parse("::1:80").status().message()),
              HasSubstr("in brackets, [::1]:41234"));
  EXPECT_THAT(std::string(SocketAddress::Parse("localhost:80").status().message()),
              HasSubstr("'localhost' is no IP address: give it as 10.0.0.2 or ::1"));
  EXPECT_THAT(std::string(SocketAddress::Parse("10.0.0.2:65536").status().message()),
              HasSubstr("ports are 0 to 65535"));
}

TEST(UniqueFdTest, ClosesOnceAndChildrenDoNotInheritIt) {
  const SocketAddress address = *SocketAddress::Parse("127.0.0.1:0");
  UniqueFd fd = *NewTcpSocket(address);
  const int number = fd.get();
  EXPECT_EQ(fcntl(number, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_EQ(fcntl(number, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  UniqueFd other = std::move(fd);
  EXPECT_FALSE(fd.valid());
  EXPECT_EQ(other.get(), number);
  other = UniqueFd();
  EXPECT_EQ(fcntl(number, F_GETFD), -1);
}

}  // namespace
}  // namespace fabricast
