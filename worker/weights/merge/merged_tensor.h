// One tensor of a merged model with the parents' tensors it is made of.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/weights/merge/merge_method.h"
#include "worker/weights/merge/merge_plan.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

// A tensor of a parent.
struct ParentTensor {
  TensorSource* source = nullptr;
  const TensorInfo* info = nullptr;
};

class MergedTensor : public MergeInputs {
 public:
  // INVALID_ARGUMENT, naming recipe and parents, where the parents' shapes do not fit each other.
  static absl::StatusOr<std::unique_ptr<MergedTensor>> Create(const MergePlan& plan,
                                                              const TensorMerge& merge,
                                                              std::vector<ParentTensor> parents);

  // As the merged model's checkpoint would hold it.
  const TensorInfo& info() const { return info_; }
  DType stored_dtype() const { return stored_dtype_; }
  const TensorMerge& merge() const { return merge_; }
  const std::vector<ParentTensor>& parents() const { return parents_; }
  // How the parents' rows become the merged table's; null where they stay what they are.
  const VocabularyMap* vocabulary() const { return vocabulary_; }

  int64_t rows() const override { return info_.rows(); }
  int64_t columns() const override { return info_.columns(); }
  DType dtype() const override { return dtype_; }
  absl::Status ReadRows(int32_t input, int64_t first_row, int64_t count, float* out) const override;

  // What the method has found out about the tensor.
  const TensorMerger* merger() const { return merger_.get(); }
  void set_merger(std::unique_ptr<TensorMerger> merger) { merger_ = std::move(merger); }

 private:
  MergedTensor(const TensorMerge& merge, std::vector<ParentTensor> parents)
      : merge_(merge), parents_(std::move(parents)) {}
  absl::Status ReadStored(size_t input, int64_t first_row, int64_t count, float* out) const;
  bool StoredAsMerged(const ParentTensor& parent) const;
  // Rows rounded to dtype(). False if a number is not finite.
  absl::StatusOr<bool> ReadShorts(const ParentTensor& parent, int64_t first_row, int64_t count,
                                  float* out) const;
  absl::StatusOr<bool> ReadRounded(const ParentTensor& parent, int64_t first_row, int64_t count,
                                   float* out) const;
  absl::Status ReadMapped(size_t input, int64_t first_row, int64_t count, float* out) const;
  absl::Status ReadSubstitute(const std::vector<VocabularyRow>& rows, float* out) const;

  const TensorMerge& merge_;
  const std::vector<ParentTensor> parents_;
  const VocabularyMap* vocabulary_ = nullptr;
  TensorInfo info_;
  DType dtype_ = DType::kF32;         // that inputs are merged in
  DType stored_dtype_ = DType::kF32;  // info().dtype
  std::unique_ptr<TensorMerger> merger_;
};

}  // namespace marcoro
