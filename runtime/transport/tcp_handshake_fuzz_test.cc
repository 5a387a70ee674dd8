// No bytes but a peer's that knows the secret end a handshake well, and none crash it.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "runtime/transport/tcp_handshake.h"

namespace {

using fabricast::Handshake;

void Feed(Handshake& side, absl::string_view input) {
  for (size_t said = 0; side.wanted() <= input.size();) {
    const size_t wanted = side.wanted();
    // Nonces are fixed here, but who does not know the secret cannot prove anything.
    if (wanted == 0 || wanted > Handshake::kMostWanted) abort();
    std::string reply;
    const absl::Status status = side.Take(input.substr(0, wanted), &reply);
    said += reply.size();
    if (said > 2 * Handshake::kMostWanted) abort();
    if (!status.ok()) return;
    input.remove_prefix(wanted);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  const fabricast::SharedSecret secret("0123456789abcdef");
  const std::string nonce(fabricast::SharedSecret::kNonceBytes, 'n');
  fabricast::Acceptor acceptor(
      secret,
      {.session = "s", .stage = 1, .streams = 2, .may_dial = [](int from) { return from == 0; }},
      nonce);
  Feed(acceptor, input);
  fabricast::Dialler dialler(secret, "s", {.from = 0, .to = 1, .stream = 0, .streams = 2}, nonce);
  Feed(dialler, input);
  return 0;
}
