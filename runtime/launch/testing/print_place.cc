// Prints the place that this process found itself at, as one line of JSON: null without a launcher.
#include <iostream>
#include <nlohmann/json.hpp>

#include "runtime/launch/rank.h"

int main() {
  const absl::StatusOr<std::optional<fabricast::Place>> place =
      fabricast::FindPlace(fabricast::ThisEnvironment(), {});
  if (!place.ok()) {
    std::cerr << place.status().message() << std::endl;
    return 1;
  }
  nlohmann::json json;
  if (place->has_value()) {
    const fabricast::Place& found = **place;
    json = {{"rank", found.rank}, {"launcher", found.launcher}};
    if (found.size.has_value()) json["size"] = *found.size;
    if (found.local_rank.has_value()) json["local_rank"] = *found.local_rank;
    if (found.local_size.has_value()) json["local_size"] = *found.local_size;
    if (found.head.has_value()) json["head"] = *found.head;
  }
  // At once, so that lines of several processes do not mix.
  std::cout << json.dump() + "\n" << std::flush;
  return 0;
}
