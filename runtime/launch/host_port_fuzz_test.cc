// Any text is an address or a refusal, and an address is the same once it was written and read.
#include <cstdint>
#include <cstdlib>

#include "runtime/launch/local_addresses.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<fabricast::HostPort> address = fabricast::ParseHostPort(text);
  if (!address.ok()) return 0;
  if (address->host.empty() || address->port.value_or(0) < 0 || address->port.value_or(0) > 65535) {
    abort();
  }
  const absl::StatusOr<fabricast::HostPort> again =
      fabricast::ParseHostPort(fabricast::FormatHostPort(*address));
  if (!again.ok() || again->host != address->host || again->port != address->port) abort();
  return 0;
}
