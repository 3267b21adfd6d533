#include "worker/collective/nccl_library.h"

#include <dlfcn.h>

#include <string>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace marcoro {
namespace {

constexpr char kLibrary[] = "libnccl.so.2";

absl::Status Missing(const std::string& what) {
  return absl::FailedPreconditionError(
      absl::StrCat("NCCL: ", what,
                   ": install NCCL 2 (libnccl2), name its folder in LD_LIBRARY_PATH, or take "
                   "--collective=peer-memory where all ranks share a host"));
}

}  // namespace

absl::StatusOr<NcclLibrary> OpenNccl(const char* name) {
  void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return Missing(dlerror());
  std::string lacking;
  const auto find = [&](auto& function, const char* symbol) {
    void* address = dlsym(handle, symbol);
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
    if (address == nullptr && lacking.empty()) lacking = symbol;
  };
  NcclLibrary library;
  find(library.GetUniqueId, "ncclGetUniqueId");
  find(library.CommInitRankConfig, "ncclCommInitRankConfig");
  find(library.CommGetAsyncError, "ncclCommGetAsyncError");
  find(library.CommAbort, "ncclCommAbort");
  find(library.GetErrorString, "ncclGetErrorString");
  find(library.GetLastError, "ncclGetLastError");
  find(library.AllGather, "ncclAllGather");
  find(library.Broadcast, "ncclBroadcast");
  find(library.Send, "ncclSend");
  find(library.Recv, "ncclRecv");
  find(library.GroupStart, "ncclGroupStart");
  find(library.GroupEnd, "ncclGroupEnd");
  if (lacking.empty()) return library;
  dlclose(handle);
  return Missing(absl::StrCat(name, " lacks ", lacking, ", it is too old"));
}

absl::StatusOr<const NcclLibrary*> LoadNccl() {
  static const auto& library = *new absl::StatusOr<NcclLibrary>(OpenNccl(kLibrary));
  if (!library.ok()) return library.status();
  return &*library;
}

}  // namespace marcoro
