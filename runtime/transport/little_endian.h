// Numbers on the wire.
#ifndef FABRICAST_RUNTIME_TRANSPORT_LITTLE_ENDIAN_H_
#define FABRICAST_RUNTIME_TRANSPORT_LITTLE_ENDIAN_H_

#include <bit>
#include <cstring>

namespace fabricast {

static_assert(std::endian::native == std::endian::little, "swap bytes here");

template <typename T>
void StoreLittleEndian(T value, void* to) {
  std::memcpy(to, &value, sizeof(T));
}

template <typename T>
T LoadLittleEndian(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_LITTLE_ENDIAN_H_
