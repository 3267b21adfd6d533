// libFuzzer's way into every target.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  marcoro::FuzzOne({reinterpret_cast<const char*>(data), size});
  return 0;
}
