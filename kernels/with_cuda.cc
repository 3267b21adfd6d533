#include "kernels/backend_choice.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/runtime.h"

namespace marcoro {

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const BackendOptions& options) {
  int device = options.device;
  if (device < 0) {
    const absl::StatusOr<int> count = cuda::DeviceCount();
    if (!count.ok()) return count.status();
    device = options.rank % *count;
  }
  return cuda::MakeCudaBackend(device, {.threads = options.threads,
                                        .activations = options.activations,
                                        .graphs = options.cuda_graphs});
}

}  // namespace marcoro
