// Parents written by tests, merged tensors read whole, and how far numbers of a stored type are
// apart.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/merge/merge_plan.h"
#include "worker/weights/merge/merge_source.h"

namespace marcoro::testing {

// parallel(n, work) on as many threads, each of which takes the next i that is left.
ParallelFor Threads(int count);

// Rounded to nearest even, in double from the definition of the format.
StoredTensor Store(const std::string& dtype, std::vector<int64_t> shape,
                   const std::vector<float>& numbers);

// A tensor of this shape with numbers that follow from the seed: normal, of this deviation.
std::vector<float> RandomNumbers(int64_t count, uint64_t seed, double deviation = 1);

// How many numbers of the type lie between two of them: 0 for equal ones, zeros of either sign
// among them. "BF16", "F16" or "F32".
int64_t UlpDistance(const std::string& dtype, float a, float b);

// A merge of one tensor "w" of parents that the test writes, as a recipe's plan would have it.
class OneTensorMerge {
 public:
  explicit OneTensorMerge(const std::string& method, const std::string& dtype = "F32");

  // Parents in the recipe's order.
  void AddParent(const StoredTensor& tensor, const MergeParameters& parameters = {});

  MergePlan& plan() { return plan_; }
  TensorMerge& merge() { return plan_.tensors[0]; }
  const std::string& directory(int model) const {
    return plan_.models[static_cast<size_t>(model)].directory;
  }

  absl::StatusOr<std::unique_ptr<MergeSource>> Open() const { return MergeSource::Open(plan_); }
  // The whole tensor, or the error on the way there.
  absl::StatusOr<std::vector<float>> Merge(int threads = 1) const;

 private:
  TempFolder folder_;
  MergePlan plan_;
};

// Prepares the tensor and reads it whole.
absl::StatusOr<std::vector<float>> ReadWhole(TensorSource& source, const std::string& name,
                                             int threads = 1);

// Every tensor of the source as a written merge would hold it.
StoredTensors WrittenMerge(TensorSource& source);

}  // namespace marcoro::testing
