#include "worker/collective/nccl.h"

namespace marcoro {

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(const NcclOptions&, KeyStore&,
                                                                   Communicator&) {
  return absl::FailedPreconditionError(
      "collectives between GPUs: this program was built without them; build with cmake --preset "
      "cuda");
}

}  // namespace marcoro
