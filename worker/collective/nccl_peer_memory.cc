#include "worker/collective/nccl_peer_memory.h"

#include <cuda_runtime.h>

#include <atomic>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/runtime.h"

namespace marcoro {
namespace {

// So much longer than the watchdog's pause that the process ends before a kernel that gave up lets
// the stream go on.
constexpr absl::Duration kGrace = absl::Seconds(2);

absl::Status CudaError(absl::string_view what, cudaError_t error) {
  (void)cudaGetLastError();  // told here
  return absl::FailedPreconditionError(absl::StrCat(
      "peer memory: ", what, ": ", cudaGetErrorName(error), " (", cudaGetErrorString(error), ")"));
}

}  // namespace

MappedPeerMemory::MappedPeerMemory(const PeerMemoryOptions& options) : options_(options) {
  peers_.rank = options.rank;
  peers_.ranks = options.size;
  peers_.slot_elements = options.slot_elements;
  peers_.patience = static_cast<uint64_t>(absl::ToInt64Nanoseconds(options.patience));
  peers_.grace = static_cast<uint64_t>(absl::ToInt64Nanoseconds(kGrace));
}

// This rank's own memory is left to the end of the process: peers may still have it mapped, and
// CUDA does not define what freeing it means for them.
MappedPeerMemory::~MappedPeerMemory() {
  for (int rank = 0; rank < options_.size; ++rank) {
    if (rank != options_.rank && peers_.memory[rank] != nullptr) {
      cudaIpcCloseMemHandle(peers_.memory[rank]);
    }
  }
  if (peers_.failure != nullptr) cuda::FreePinned(peers_.failure);
}

absl::StatusOr<std::unique_ptr<MappedPeerMemory>> MappedPeerMemory::Connect(
    const PeerMemoryOptions& options, Rendezvous& rendezvous) {
  std::unique_ptr<MappedPeerMemory> memory(new MappedPeerMemory(options));
  const absl::StatusOr<std::string> handle = memory->Allocate();
  absl::Status agreed = rendezvous.Agree("peer-memory/allocated", handle.status());
  if (!agreed.ok()) return agreed;
  const auto handles = rendezvous.Exchange("peer-memory/handle", *handle);
  if (!handles.ok()) return handles.status();
  agreed = rendezvous.Agree("peer-memory/mapped", memory->Map(*handles));
  if (!agreed.ok()) return agreed;
  return memory;
}

// Returns what lets other processes map the memory.
absl::StatusOr<std::string> MappedPeerMemory::Allocate() {
  auto failure = cuda::AllocatePinned(sizeof(*peers_.failure));
  if (!failure.ok()) return failure.status();
  peers_.failure = static_cast<uint32_t*>(*failure);
  *peers_.failure = 0;
  auto own = cuda::AllocateDevice(
      cuda::PeerMemoryBytes(options_.size, peers_.most_blocks, options_.slot_elements));
  if (!own.ok()) return own.status();
  peers_.memory[options_.rank] = static_cast<char*>(*own);
  cudaIpcMemHandle_t handle;
  const cudaError_t error = cudaIpcGetMemHandle(&handle, *own);
  if (error != cudaSuccess) return CudaError("this GPU's cannot be shared", error);
  return std::string(handle.reserved, sizeof(handle.reserved));
}

absl::Status MappedPeerMemory::Map(const std::vector<std::string>& handles) {
  for (int rank = 0; rank < options_.size; ++rank) {
    if (rank == options_.rank) continue;
    const std::string& told = handles[static_cast<size_t>(rank)];
    cudaIpcMemHandle_t handle;
    if (told.size() != sizeof(handle.reserved)) {
      return absl::FailedPreconditionError(
          absl::StrCat("peer memory: rank ", rank, " sent a handle of ", told.size(), " bytes"));
    }
    std::memcpy(handle.reserved, told.data(), told.size());
    void* mapped = nullptr;
    const cudaError_t error = cudaIpcOpenMemHandle(&mapped, handle, cudaIpcMemLazyEnablePeerAccess);
    if (error != cudaSuccess) {
      return CudaError(absl::StrCat("rank ", rank, "'s cannot be mapped"), error);
    }
    peers_.memory[rank] = static_cast<char*>(mapped);
  }
  return absl::OkStatus();
}

absl::Status MappedPeerMemory::Check() const {
  // The GPU writes it.
  const uint32_t failure = std::atomic_ref<uint32_t>(*peers_.failure).load();
  if (failure == 0) return absl::OkStatus();
  return absl::DeadlineExceededError(
      absl::StrCat("rank ", failure - 1, " did not come to a collective within ",
                   absl::FormatDuration(options_.patience), ": it hangs or is gone"));
}

}  // namespace marcoro
