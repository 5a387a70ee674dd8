#include "topology/link_rates.h"

#include <algorithm>
#include <iterator>

namespace fabricast {

double PcieBytesPerSecond(int generation, int lanes) {
  struct Generation {
    double gigatransfers_per_s;
    double coding;
  };
  static constexpr Generation kGenerations[] = {
      {2.5, 8.0 / 10},   {5, 8.0 / 10},     {8, 128.0 / 130},
      {16, 128.0 / 130}, {32, 128.0 / 130}, {64, 242.0 / 256},
  };
  const int index = std::clamp<int>(generation - 1, 0, std::size(kGenerations) - 1);
  return kGenerations[index].gigatransfers_per_s * 1e9 * kGenerations[index].coding * lanes / 8;
}

}  // namespace fabricast
