// Hosts on one machine: each in a network namespace of its own, joined by cables of a given rate to
// a switch. For tests and rehearsals of what runs on many hosts.
//
//   host_a: eth0 ==== cable, shaped both ways ==== port0  switch  port1 ==== ... ==== eth0: host_b
//
// Nothing of it can be seen or reached from the machine's own network, and nothing is left of it
// when the program that made it ends, however it ends. README.md says how exact rates are.
#ifndef FABRICAST_TOOLS_VIRTUAL_NETWORK_VIRTUAL_NETWORK_H_
#define FABRICAST_TOOLS_VIRTUAL_NETWORK_VIRTUAL_NETWORK_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tools/virtual_network/cable_relay.h"
#include "tools/virtual_network/host_process.h"
#include "tools/virtual_network/network_namespace.h"

namespace fabricast {

struct VirtualHost {
  std::string name;
  // Of its cable, 10^6 bits a second on the wire in each direction; 0: as fast as the machine can.
  double rate_mbit = 0;
};

struct VirtualNetworkOptions {
  int mtu_bytes = 1500;  // of IP packets
  uint64_t seed = 0;     // of the frames that are lost
};

// One thread at a time.
class VirtualNetwork {
 public:
  // Two hosts or more, of different names. Forks a process that disturbs frames: call it before
  // there are threads.
  //
  // kPermissionDenied and kUnimplemented say which right, tool or part of the kernel is missing,
  // and the mend: skip the test with that.
  static absl::StatusOr<std::unique_ptr<VirtualNetwork>> Make(
      const std::vector<VirtualHost>& hosts, const VirtualNetworkOptions& options = {});

  VirtualNetwork(const VirtualNetwork&) = delete;
  VirtualNetwork& operator=(const VirtualNetwork&) = delete;

  // 10.77.0.1 for the first host, and so on. CHECKs that there is such a host. Each host has lo
  // too.
  std::string ip(const std::string& host) const;

  // All below: kNotFound if there is no such host; names those there are.

  // Runs a program on a host: in its network, with this machine's files and processes.
  absl::StatusOr<std::unique_ptr<HostProcess>> Start(const std::string& host,
                                                     const std::vector<std::string>& command,
                                                     const ProcessOptions& options = {});
  // Runs `body` there, in a fork of this process, which should have no other threads. Its value is
  // the exit status.
  absl::StatusOr<std::unique_ptr<HostProcess>> Fork(const std::string& host,
                                                    const std::function<int()>& body);

  // Of both directions of its cable, from now on; 0: as fast as the machine can.
  absl::Status SetRate(const std::string& host, double rate_mbit);

  // Pulls its cable out and puts it back; the host's kernel may notice up to a second later. What
  // is under way is lost.
  absl::Status Cut(const std::string& host);
  absl::Status Restore(const std::string& host);

  // Loses and delays frames on its cable, in both directions each: an answer from another host
  // comes back 2 x delay later, and is lost with a probability of 1 - (1 - loss)^2. Good for rates
  // up to about 100 Mbit/s, and {} sets both to 0.
  absl::Status Disturb(const std::string& host, const Disturbance& disturbance);

 private:
  struct Host {
    std::string name;
    NetworkNamespace space;
    double rate_mbit = 0;
    bool relayed = false;  // its frames go through the relay
  };

  VirtualNetwork(const VirtualNetworkOptions& options, NetworkNamespace switch_space,
                 std::unique_ptr<CableRelay> relay);
  absl::Status AddSwitch();
  absl::Status AddCable(int index);
  absl::StatusOr<int> Find(const std::string& host) const;
  std::string IpOf(int index) const;
  absl::Status Shape(const NetworkNamespace& space, const std::string& device, double rate_mbit,
                     bool was_shaped) const;

  const VirtualNetworkOptions options_;
  const NetworkNamespace switch_;
  const std::unique_ptr<CableRelay> relay_;
  std::vector<Host> hosts_;
};

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_VIRTUAL_NETWORK_VIRTUAL_NETWORK_H_
