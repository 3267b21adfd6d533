// base + λ Σ wᵢ·δᵢ (arXiv 2212.04089).

#include "worker/weights/merge/task_vectors.h"

namespace marcoro {

const MergeMethod& TaskArithmeticMethod() {
  static const TaskVectorMethod method({.name = "task_arithmetic"});
  return method;
}

}  // namespace marcoro
