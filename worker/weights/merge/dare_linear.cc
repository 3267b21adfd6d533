// A random part of each task vector, scaled up for the rest; their weighted sum (arXiv 2311.03099).

#include "worker/weights/merge/task_vectors.h"

namespace marcoro {

const MergeMethod& DareLinearMethod() {
  static const TaskVectorMethod method(
      {.name = "dare_linear", .sparsity = TaskVectorTraits::Sparsity::kRandom, .rescale = true});
  return method;
}

}  // namespace marcoro
