// Addresses of hosts, as people and processes write them.
#ifndef FABRICAST_RUNTIME_LAUNCH_LOCAL_ADDRESSES_H_
#define FABRICAST_RUNTIME_LAUNCH_LOCAL_ADDRESSES_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fabricast {

struct HostPort {
  std::string host;  // a name or an IP address; IPv6 without brackets
  std::optional<int> port;
};

// "node1", "node1:29500", "10.0.0.2:0", "[fd00::2]:29500", "[fd00::2]", "fd00::2". Ports are 0 to
// 65535; 0 is any free one, to who listens. kInvalidArgument quotes `text`.
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text);

// What ParseHostPort reads: brackets around IPv6 if there is a port.
std::string FormatHostPort(const HostPort& address);

// The IP addresses of `host`, the best one to connect to first; at least one. An IP address is its
// own. Asks the system's resolver, which may take seconds. kNotFound: there is no such host;
// kUnavailable: the resolver did not answer, so try again.
absl::StatusOr<std::vector<std::string>> ResolveHost(const std::string& host);

// Whether `ip` is an address of one of this machine's interfaces (in this network namespace), or of
// IPv4's loopback network, 127.0.0.0/8, all of which is this machine. Not so 0.0.0.0 and ::, which
// are no addresses of anybody. kInvalidArgument if `ip` is no IP address.
absl::StatusOr<bool> IsLocalAddress(const std::string& ip);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_LAUNCH_LOCAL_ADDRESSES_H_
