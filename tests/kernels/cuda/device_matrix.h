// Matrices for tests of launchers, in device memory, with what lies between their rows.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cuda/runtime.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/matrix.h"

#ifdef MARCORO_SIMT
#include "tests/kernels/simt/simt.h"
#endif

namespace marcoro::cuda {

// A copy of a matrix, its padding included.
class DeviceMatrix {
 public:
  explicit DeviceMatrix(const Matrix& matrix) : shape_(matrix), memory_(Bytes(matrix.view())) {
    memory_.CopyFrom({static_cast<const uint8_t*>(matrix.view().data), memory_.size()});
  }

  Tensor view() const {
    Tensor result = shape_.view();
    result.data = memory_.data();
    return result;
  }
  // Waits for what was launched.
  Matrix ToHost() const {
    Matrix result = shape_;
    const std::vector<uint8_t> bytes = memory_.ToHost();
    std::memcpy(result.view().data, bytes.data(), bytes.size());
    return result;
  }

 private:
  static size_t Bytes(const Tensor& tensor) {
    return static_cast<size_t>(tensor.rows * tensor.stride) * SizeOf(tensor.dtype);
  }

  Matrix shape_;
  DeviceArray<uint8_t> memory_;
};

// Runs body several times, with another order of threads each time where the emulator runs them.
template <typename Body>
void InSeveralThreadOrders(const Body& body) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
#ifdef MARCORO_SIMT
    simt::SetSeed(seed);
#endif
    body();
  }
}

// Launches what body launches, and nothing else, with all blocks of a kernel there at once, their
// threads in any order, as they may be on a GPU; the emulator otherwise runs block after block.
template <typename Body>
void WithAllBlocksAtOnce(const Body& body) {
#ifdef MARCORO_SIMT
  simt::LaunchTogether({body});
#else
  body();
#endif
}

}  // namespace marcoro::cuda
