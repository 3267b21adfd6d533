#include "worker/weights/merge/merge_kernels.h"

#include "worker/weights/row_kernels.h"

namespace marcoro {
namespace portable {
extern const MergeKernels kMergeKernels;
}
namespace avx2 {
extern const MergeKernels kMergeKernels;
}
namespace avx512 {
extern const MergeKernels kMergeKernels;
}

const MergeKernels& GetMergeKernels() {
  static const MergeKernels& best = *FindMergeKernels(GetRowKernels().name);
  return best;
}

const MergeKernels* FindMergeKernels(std::string_view name) {
  // The same processors run the same variants of both.
  if (FindRowKernels(name) == nullptr) return nullptr;
  if (name == "avx512") return &avx512::kMergeKernels;
  if (name == "avx2") return &avx2::kMergeKernels;
  return &portable::kMergeKernels;
}

}  // namespace marcoro
