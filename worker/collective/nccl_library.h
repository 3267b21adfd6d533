// NCCL's functions, found in its shared library when a group first needs them: a worker without
// peers starts without NCCL. Needs NCCL's header.
#pragma once

#include <nccl.h>

#include "absl/status/statusor.h"

namespace marcoro {

// The functions of nccl.h without their prefix.
struct NcclLibrary {
  decltype(&ncclGetUniqueId) GetUniqueId = nullptr;
  decltype(&ncclCommInitRankConfig) CommInitRankConfig = nullptr;
  decltype(&ncclCommGetAsyncError) CommGetAsyncError = nullptr;
  decltype(&ncclCommAbort) CommAbort = nullptr;
  decltype(&ncclGetErrorString) GetErrorString = nullptr;
  decltype(&ncclGetLastError) GetLastError = nullptr;
  decltype(&ncclAllGather) AllGather = nullptr;
  decltype(&ncclBroadcast) Broadcast = nullptr;
  decltype(&ncclSend) Send = nullptr;
  decltype(&ncclRecv) Recv = nullptr;
  decltype(&ncclGroupStart) GroupStart = nullptr;
  decltype(&ncclGroupEnd) GroupEnd = nullptr;
};

// Those of the library of that name, which stays loaded. FAILED_PRECONDITION, in one line that says
// what to do, if it is not there or lacks a function.
absl::StatusOr<NcclLibrary> OpenNccl(const char* name);

// Those of libnccl.so.2, looked for once in the life of the process.
absl::StatusOr<const NcclLibrary*> LoadNccl();

}  // namespace marcoro
