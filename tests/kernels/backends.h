// The backends that tests run over.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace marcoro {

// "avx2" and "avx512", as far as this processor runs them. Those that it does not run are named on
// stderr.
std::vector<std::string> CpuBackendNames();

// Those and the backends of devices ("cuda"): all that compute in another way than the reference.
std::vector<std::string> FastBackendNames();

// Those and "reference".
std::vector<std::string> AllBackendNames();

// Takes memory of the program's own: a device's backend is staged. Fails the test, and the process,
// if there is none.
std::unique_ptr<Backend> MakeBackend(const std::string& name, int threads = 1,
                                     DType activations = DType::kBF16);

// For INSTANTIATE_TEST_SUITE_P: the backend's name is the test's.
inline std::string BackendTestName(const ::testing::TestParamInfo<std::string>& info) {
  return info.param;
}

}  // namespace marcoro
