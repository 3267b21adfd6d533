#include "worker/group/host_identity.h"

#include <unistd.h>

#include <climits>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace marcoro {

std::string HostIdentity() {
  std::string boot_id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot_id;
  // Rank 0's segment is opened through its process id, so the ranks must see the same ids.
  char process_namespace[PATH_MAX];
  const ssize_t length =
      readlink("/proc/self/ns/pid", process_namespace, sizeof(process_namespace));
  if (boot_id.empty() || length <= 0) return "";
  return absl::StrCat(boot_id, " ",
                      absl::string_view(process_namespace, static_cast<size_t>(length)));
}

}  // namespace marcoro
