// Tells which of the architectures that this program holds kernels for a GPU has taken.
#include "kernels/cuda/device/architecture.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/ops.h"

namespace marcoro::cuda {
namespace {

MARCORO_KERNEL(32, 1) ArchitectureKernel(int* architecture) {
  if (ThreadIndex() == 0) *architecture = CompiledArchitecture();
}

}  // namespace

void Architecture(Stream stream, int* architecture) {
  Launch(stream, LaunchShape{}, ArchitectureKernel, architecture);
}

}  // namespace marcoro::cuda
