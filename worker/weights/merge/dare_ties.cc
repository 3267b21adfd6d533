// A random part of each task vector, scaled up for the rest; of those, what has the majority's sign
// (arXiv 2311.03099 with the consensus of 2306.01708).

#include "worker/weights/merge/task_vectors.h"

namespace marcoro {

const MergeMethod& DareTiesMethod() {
  static const TaskVectorMethod method({.name = "dare_ties",
                                        .sparsity = TaskVectorTraits::Sparsity::kRandom,
                                        .sign_consensus = true,
                                        .rescale = true});
  return method;
}

}  // namespace marcoro
