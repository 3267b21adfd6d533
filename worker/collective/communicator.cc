#include "worker/collective/communicator.h"

#include <cstring>

#include "absl/strings/str_cat.h"

namespace marcoro {

absl::Status Communicator::BroadcastIds(absl::Span<int32_t> ids) {
  const size_t bytes = ids.size() * sizeof(int32_t);
  std::string message;
  if (rank() == 0) message.assign(reinterpret_cast<const char*>(ids.data()), bytes);
  if (absl::Status status = BroadcastFromRoot(&message); !status.ok()) return status;
  if (message.size() != bytes) {
    return absl::InternalError(
        absl::StrCat("rank 0 sent ", message.size(), " bytes of ids instead of ", bytes));
  }
  if (bytes > 0 && rank() != 0) std::memcpy(ids.data(), message.data(), bytes);
  return absl::OkStatus();
}

}  // namespace marcoro
