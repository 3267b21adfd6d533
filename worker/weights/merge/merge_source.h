// The merged model of a plan, seen as tensors: every row is merged when it is read, from the
// parents' rows. Nothing is held but a few rows for each thread and a few numbers for each tensor.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/weights/merge/merge_method.h"
#include "worker/weights/merge/merge_plan.h"
#include "worker/weights/merge/merged_tensor.h"
#include "worker/weights/parallel_state.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

class MergeSource : public TensorSource {
 public:
  // Opens the parents, whose FP8 weights are dequantized (TensorSource::ReadRows). INVALID_ARGUMENT
  // (or what CheckpointSource::Open gives), naming the parent, for tensors that are missing, cannot
  // be read or have other shapes than their partners.
  static absl::StatusOr<std::unique_ptr<MergeSource>> Open(MergePlan plan);

  std::string Description() const override;
  // Tensors as a written merge would hold them; their origin is the recipe.
  const TensorInfo* Find(std::string_view name) const override;
  std::vector<const TensorInfo*> Tensors() const override;

  // The parents' rows; all of them where the method needs the whole tensor.
  void Prefetch(const TensorInfo& tensor, int64_t first_row, int64_t count) override;

  void Discard(const TensorInfo& tensor) override;
  // Of all parents.
  uint64_t StoredBytes() const override;

  // Must be called before a tensor's first ReadRows; later calls do nothing. Also INVALID_ARGUMENT
  // for numbers that the method cannot merge with.
  absl::Status Prepare(const TensorInfo& tensor, const ParallelFor& parallel) override;

  // Also INVALID_ARGUMENT, naming parent, tensor and row, for a parent's number that is not finite,
  // and naming recipe, tensor and row for a merged one.
  absl::Status ReadRows(const TensorInfo& tensor, int64_t first_row, int64_t count,
                        float* out) override;

  absl::Status CheckUnchanged() const override;

  // The parents' contents and every number of the merge.
  absl::Status HashContents(const TensorInfo& tensor, Sha256& hash) override;

 private:
  // Buffers of one thread: rows of each input.
  struct Scratch {
    std::vector<std::vector<float>> rows;
    std::vector<const float*> inputs;
  };

  explicit MergeSource(MergePlan plan) : plan_(std::move(plan)) {}
  absl::Status InRecipe(const absl::Status& status) const;
  absl::Status TensorError(const TensorMerge& merge, const std::string& what) const;
  absl::Status OpenParents();
  absl::Status AddTensor(const TensorMerge& merge);
  MergedTensor& Locate(const TensorInfo& tensor) const;
  absl::Status MergeRows(const MergedTensor& tensor, int64_t first_row, int64_t count,
                         Scratch& scratch, float* out) const;

  const MergePlan plan_;
  const MergeMethod* method_ = nullptr;
  std::vector<std::unique_ptr<TensorSource>> parents_;  // by model of the plan
  std::map<std::string, std::unique_ptr<MergedTensor>, std::less<>> tensors_;
  Pool<Scratch> scratch_;
};

}  // namespace marcoro
