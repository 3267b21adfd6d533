// The largest elements of each task vector; of those, what has the majority's sign; their weighted
// mean (arXiv 2306.01708).

#include "worker/weights/merge/task_vectors.h"

namespace marcoro {

const MergeMethod& TiesMethod() {
  static const TaskVectorMethod method({.name = "ties",
                                        .sparsity = TaskVectorTraits::Sparsity::kLargest,
                                        .sign_consensus = true,
                                        .normalize = true});
  return method;
}

}  // namespace marcoro
