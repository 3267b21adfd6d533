#include "absl/status/status.h"
#include "kernels/backend_choice.h"

namespace marcoro {

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const BackendOptions&) {
  return absl::FailedPreconditionError(
      "backend 'cuda': this program was built without it, for processors only; for a GPU build "
      "with "
      "cmake --preset cuda");
}

}  // namespace marcoro
