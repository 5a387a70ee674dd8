// Shows that the drivers work: feeds strtod, which takes anything.

#include <cstdint>
#include <cstdlib>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  char* end = nullptr;
  strtod(text.c_str(), &end);
  if (end < text.c_str() || end > text.c_str() + text.size()) abort();
  return 0;
}
