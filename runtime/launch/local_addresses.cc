#include "runtime/launch/local_addresses.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace fabricast {
namespace {

constexpr int kMaxPort = 65535;
constexpr size_t kMaxHostBytes = 253;  // RFC 1035's 255, written with dots

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

// `flags` are getaddrinfo's; returns its error in `error`.
AddressList LookUp(const std::string& host, int flags, int& error) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;  // otherwise each address comes once for each type
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  error = getaddrinfo(host.c_str(), nullptr, &hints, &found);
  return AddressList(error == 0 ? found : nullptr, &freeaddrinfo);
}

bool SameHost(const sockaddr& a, const sockaddr& b) {
  if (a.sa_family != b.sa_family) return false;
  if (a.sa_family == AF_INET) {
    return reinterpret_cast<const sockaddr_in&>(a).sin_addr.s_addr ==
           reinterpret_cast<const sockaddr_in&>(b).sin_addr.s_addr;
  }
  if (a.sa_family != AF_INET6) return false;
  const auto& a6 = reinterpret_cast<const sockaddr_in6&>(a);
  const auto& b6 = reinterpret_cast<const sockaddr_in6&>(b);
  // A link-local address without its interface is that of any.
  return std::memcmp(&a6.sin6_addr, &b6.sin6_addr, sizeof(a6.sin6_addr)) == 0 &&
         (a6.sin6_scope_id == b6.sin6_scope_id || a6.sin6_scope_id == 0 || b6.sin6_scope_id == 0);
}

bool IsLoopbackNetwork(const sockaddr& address) {
  if (address.sa_family != AF_INET) return false;
  const in_addr_t ip = ntohl(reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr);
  return ip >> 24 == IN_LOOPBACKNET;
}

}  // namespace

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text) {
  const auto error = [text](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\": ", why, "; an address is HOST, HOST:PORT or [IPV6]:PORT"));
  };
  HostPort address;
  absl::string_view port;
  bool has_port = false;
  const size_t colon = text.rfind(':');
  if (!text.empty() && text.front() == '[') {
    const size_t end = text.find(']');
    if (end == absl::string_view::npos) return error("the bracket is not closed");
    address.host = std::string(text.substr(1, end - 1));
    if (std::count(address.host.begin(), address.host.end(), ':') < 2) {
      return error("what is in brackets is no IPv6 address");
    }
    const absl::string_view rest = text.substr(end + 1);
    has_port = !rest.empty();
    if (has_port && rest.front() != ':') return error("a port comes after a colon");
    port = rest.substr(has_port ? 1 : 0);
  } else if (colon != absl::string_view::npos && text.find(':') == colon) {
    address.host = std::string(text.substr(0, colon));
    has_port = true;
    port = text.substr(colon + 1);
  } else {
    address.host = std::string(text);
  }

  if (address.host.empty()) return error("there is no host");
  if (address.host.size() > kMaxHostBytes) return error("the host is too long");
  for (const char c : address.host) {
    if (!absl::ascii_isgraph(c) || c == '[' || c == ']' || c == '/' || c == ',') {
      return error("a host has no such character");
    }
  }
  if (!has_port) return address;
  int number = 0;
  if (port.empty() || port.size() > 5 ||
      !std::all_of(port.begin(), port.end(), [](char c) { return absl::ascii_isdigit(c); }) ||
      !absl::SimpleAtoi(port, &number) || number > kMaxPort) {
    return error(absl::StrCat("the port is a number of 0 to ", kMaxPort));
  }
  address.port = number;
  return address;
}

std::string FormatHostPort(const HostPort& address) {
  if (!address.port.has_value()) return address.host;
  const bool is_ipv6 = address.host.find(':') != std::string::npos;
  return is_ipv6 ? absl::StrCat("[", address.host, "]:", *address.port)
                 : absl::StrCat(address.host, ":", *address.port);
}

absl::StatusOr<std::vector<std::string>> ResolveHost(const std::string& host) {
  if (host.empty()) return absl::InvalidArgumentError("a host has a name or an IP address");
  int error = 0;
  const AddressList found = LookUp(host, 0, error);
  const int system_error = errno;
  if (error == EAI_NONAME || error == EAI_NODATA) {
    return absl::NotFoundError(
        absl::StrCat("host ", host, ": no IP address is known; check its name (getent hosts ", host,
                     "), or give an IP address"));
  }
  if (error != 0) {
    const char* const why = error == EAI_SYSTEM ? std::strerror(system_error) : gai_strerror(error);
    return absl::UnavailableError(absl::StrCat(
        "host ", host, ": ", why, "; try again, check /etc/resolv.conf, or give an IP address"));
  }
  std::vector<std::string> addresses;
  for (const addrinfo* entry = found.get(); entry != nullptr; entry = entry->ai_next) {
    char text[NI_MAXHOST];
    if (getnameinfo(entry->ai_addr, entry->ai_addrlen, text, sizeof(text), nullptr, 0,
                    NI_NUMERICHOST) != 0) {
      continue;
    }
    if (std::find(addresses.begin(), addresses.end(), text) == addresses.end()) {
      addresses.push_back(text);
    }
  }
  if (addresses.empty()) {
    return absl::NotFoundError(
        absl::StrCat("host ", host, ": it has no IPv4 or IPv6 address; give one"));
  }
  return addresses;
}

absl::StatusOr<bool> IsLocalAddress(const std::string& ip) {
  int error = 0;
  const AddressList wanted = LookUp(ip, AI_NUMERICHOST, error);
  // getaddrinfo takes an empty string for a name that is missing, and "1" for 0.0.0.1.
  in_addr exact;
  const bool is_ip = wanted != nullptr &&
                     (wanted->ai_family == AF_INET6 || inet_pton(AF_INET, ip.c_str(), &exact) == 1);
  if (!is_ip) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", ip, "\" is no IP address such as 10.0.0.2 or fd00::2"));
  }
  if (IsLoopbackNetwork(*wanted->ai_addr)) return true;
  ifaddrs* interfaces = nullptr;
  if (getifaddrs(&interfaces) != 0) {
    return absl::UnavailableError(
        absl::StrCat("the network interfaces cannot be listed: ", std::strerror(errno)));
  }
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(interfaces, &freeifaddrs);
  for (const ifaddrs* entry = interfaces; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr != nullptr && SameHost(*entry->ifa_addr, *wanted->ai_addr)) return true;
  }
  return false;
}

}  // namespace fabricast
