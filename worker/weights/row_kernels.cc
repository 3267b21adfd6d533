#include "worker/weights/row_kernels.h"

namespace marcoro {
namespace portable {
extern const RowKernels kRowKernels;
}
namespace avx2 {
extern const RowKernels kRowKernels;
}
namespace avx512 {
extern const RowKernels kRowKernels;
}

namespace {

bool RunsAvx2() { return __builtin_cpu_supports("avx2"); }

bool RunsAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

const RowKernels& GetRowKernels() {
  static const RowKernels& best = RunsAvx512() ? avx512::kRowKernels
                                  : RunsAvx2() ? avx2::kRowKernels
                                               : portable::kRowKernels;
  return best;
}

const RowKernels* FindRowKernels(std::string_view name) {
  if (name == "portable") return &portable::kRowKernels;
  if (name == "avx2" && RunsAvx2()) return &avx2::kRowKernels;
  if (name == "avx512" && RunsAvx512()) return &avx512::kRowKernels;
  return nullptr;
}

}  // namespace marcoro
