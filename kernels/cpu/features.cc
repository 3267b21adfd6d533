#include "kernels/cpu/features.h"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"

namespace marcoro::cpu {
namespace {

std::string Missing(const std::vector<std::pair<std::string_view, bool>>& needed) {
  std::vector<std::string> missing;
  for (const auto& [name, present] : needed) {
    if (!present) missing.emplace_back(name);
  }
  return absl::StrJoin(missing, ", ");
}

}  // namespace

CpuFeatures DetectCpuFeatures() {
  CpuFeatures features;
#if defined(__x86_64__)
  __builtin_cpu_init();
  features.avx2 = __builtin_cpu_supports("avx2") != 0;
  features.fma = __builtin_cpu_supports("fma") != 0;
  features.f16c = __builtin_cpu_supports("f16c") != 0;
  features.avx512f = __builtin_cpu_supports("avx512f") != 0;
  features.avx512bw = __builtin_cpu_supports("avx512bw") != 0;
  features.avx512vl = __builtin_cpu_supports("avx512vl") != 0;
  features.avx512vbmi = __builtin_cpu_supports("avx512vbmi") != 0;
  features.avx512bf16 = __builtin_cpu_supports("avx512bf16") != 0;
#endif
  return features;
}

std::string MissingForAvx2(const CpuFeatures& features) {
  return Missing({{"AVX2", features.avx2}, {"FMA", features.fma}, {"F16C", features.f16c}});
}

std::string MissingForAvx512(const CpuFeatures& features) {
  return Missing({{"AVX2", features.avx2},
                  {"FMA", features.fma},
                  {"F16C", features.f16c},
                  {"AVX512F", features.avx512f},
                  {"AVX512BW", features.avx512bw},
                  {"AVX512VL", features.avx512vl},
                  {"AVX512VBMI", features.avx512vbmi},
                  {"AVX512_BF16", features.avx512bf16}});
}

}  // namespace marcoro::cpu
