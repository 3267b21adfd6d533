// The backend of plain loops. It computes on the calling thread only.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace marcoro {

// activations: kBF16, kF32 or kF8E4M3.
std::unique_ptr<Backend> MakeReferenceBackend(DType activations);

}  // namespace marcoro
