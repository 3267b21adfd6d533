// The backends "avx2" and "avx512": the same code around the kernels of one instruction set.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace marcoro::cpu {

enum class InstructionSet { kAvx2, kAvx512 };

// The processor must have the instructions (features.h). threads: 1 to 1024. activations: kBF16 or
// kF8E4M3.
std::unique_ptr<Backend> MakeCpuBackend(InstructionSet instruction_set, int threads,
                                        DType activations);

}  // namespace marcoro::cpu
