// What tests of virtual networks share: whether there can be one here, and small talk between
// hosts.
#ifndef FABRICAST_TOOLS_VIRTUAL_NETWORK_TEST_NETWORK_H_
#define FABRICAST_TOOLS_VIRTUAL_NETWORK_TEST_NETWORK_H_

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tools/virtual_network/file_descriptor.h"

namespace fabricast {

// Generous: a machine under load and a sanitizer.
inline constexpr absl::Duration kPatience = absl::Seconds(60);

// Why this machine or sandbox can have no virtual network, found out without the library; empty if
// it can.
std::string WhyNoVirtualNetwork();

// The exit status of `body` in a fork of this process; 128 + the signal that ended it.
int StatusInFork(const std::function<int()>& body);

// All interfaces of this process's network.
std::vector<std::string> InterfaceNames();

// Is a cable plugged into this process's eth0? Waits until it is as expected, for the kernel tells
// it a while later; false if it does not become so.
bool CarrierBecomes(bool plugged);

// A socket that is bound to all addresses of this process's host. Ends the process if it cannot be.
FileDescriptor Listen(int port);  // 0: any that is free
FileDescriptor OpenDatagrams(int port);
int PortOf(const FileDescriptor& listening);

// Tries until `deadline`; get() is -1 if nobody was there, with errno.
FileDescriptor Connect(const std::string& ip, int port, absl::Time deadline);
// What a connection is answered at the first try: errno, or 0.
int ConnectError(const std::string& ip, int port);

FileDescriptor Accept(const FileDescriptor& listening);
// False if the other end has gone.
bool SendAll(const FileDescriptor& socket, const void* bytes, size_t size);
bool ReceiveAll(const FileDescriptor& socket, void* bytes, size_t size);

void SendDatagram(const FileDescriptor& socket, const std::string& ip, int port, int number);
// -1: none came before `deadline`.
int ReceiveDatagram(const FileDescriptor& socket, absl::Time deadline);

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_VIRTUAL_NETWORK_TEST_NETWORK_H_
