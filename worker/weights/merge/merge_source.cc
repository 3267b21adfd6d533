#include "worker/weights/merge/merge_source.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/merge/merge_kernels.h"
#include "worker/weights/quantize.h"
#include "worker/weights/sha256.h"

namespace marcoro {
namespace {

// Elements that are merged at a time: what a few inputs of them take fits a core's second cache.
// Rows longer than this are still handled whole.
constexpr int64_t kMergeElements = 16 * 1024;

std::string KnownMethods() {
  std::string names;
  for (const std::string_view name : MergeMethodNames()) {
    if (!names.empty()) names += ", ";
    names += name;
  }
  return names;
}

void HashParameters(const MergeParameters& parameters, Sha256& hash) {
  hash.Number(parameters.size());
  for (const auto& [name, value] : parameters) {
    hash.Text(name);
    hash.Number(std::bit_cast<uint64_t>(value));
  }
}

void HashVocabulary(const VocabularyMap& map, Sha256& hash) {
  const auto add = [&hash](const auto& numbers) {
    hash.Number(numbers.size());
    hash.Bytes(numbers.data(), numbers.size() * sizeof(numbers[0]));
  };
  for (const std::vector<int32_t>& rows : map.rows) add(rows);
  hash.Number(map.substitutes.size());
  for (const std::vector<VocabularyRow>& rows : map.substitutes) add(rows);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MergeSource>> MergeSource::Open(MergePlan plan) {
  std::unique_ptr<MergeSource> source(new MergeSource(std::move(plan)));
  source->method_ = FindMergeMethod(source->plan_.method);
  if (source->method_ == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(source->plan_.recipe, ": merge_method: there is no ", source->plan_.method,
                     " (known: ", KnownMethods(), ")"));
  }
  if (absl::Status status = source->OpenParents(); !status.ok()) return status;
  for (const TensorMerge& merge : source->plan_.tensors) {
    if (absl::Status status = source->AddTensor(merge); !status.ok()) return status;
  }
  return source;
}

absl::Status MergeSource::OpenParents() {
  for (const MergeModel& model : plan_.models) {
    auto parent = CheckpointSource::Open(model.directory);
    if (!parent.ok()) {
      return InRecipe(parent.status());
    }
    parents_.push_back(*std::move(parent));
  }
  return absl::OkStatus();
}

absl::Status MergeSource::AddTensor(const TensorMerge& merge) {
  const int32_t inputs = static_cast<int32_t>(merge.inputs.size());
  if (inputs < method_->min_inputs() || inputs > method_->max_inputs()) {
    return TensorError(merge, absl::StrCat(plan_.method, " merges ", method_->min_inputs(), " to ",
                                           method_->max_inputs(), " models, not ", inputs));
  }
  if (method_->base() == MergeMethod::Base::kRequired && (merge.base < 0 || merge.base >= inputs)) {
    return TensorError(merge, absl::StrCat(plan_.method, " needs a base_model"));
  }
  std::vector<ParentTensor> parents;
  for (const MergeInput& input : merge.inputs) {
    TensorSource* source = parents_[static_cast<size_t>(input.model)].get();
    const TensorInfo* info = source->Find(input.tensor);
    if (info == nullptr) {
      return TensorError(
          merge, absl::StrCat(plan_.models[static_cast<size_t>(input.model)].reference, " (",
                              plan_.models[static_cast<size_t>(input.model)].directory,
                              ") has no tensor ", input.tensor));
    }
    parents.push_back({source, info});
  }
  auto tensor = MergedTensor::Create(plan_, merge, std::move(parents));
  if (!tensor.ok()) return tensor.status();
  tensors_.emplace(merge.name, *std::move(tensor));
  return absl::OkStatus();
}

absl::Status MergeSource::InRecipe(const absl::Status& status) const {
  return absl::Status(status.code(), absl::StrCat(plan_.recipe, ": ", status.message()));
}

absl::Status MergeSource::TensorError(const TensorMerge& merge, const std::string& what) const {
  return absl::InvalidArgumentError(
      absl::StrCat(plan_.recipe, ": tensor ", merge.name, ": ", what));
}

std::string MergeSource::Description() const {
  return absl::StrCat(plan_.recipe, " (", plan_.method, " of ",
                      absl::StrJoin(plan_.models, ", ",
                                    [](std::string* out, const MergeModel& model) {
                                      absl::StrAppend(out, model.reference);
                                    }),
                      ": ", tensors_.size(), " tensors)");
}

const TensorInfo* MergeSource::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second->info();
}

std::vector<const TensorInfo*> MergeSource::Tensors() const {
  std::vector<const TensorInfo*> tensors;
  for (const auto& [name, tensor] : tensors_) tensors.push_back(&tensor->info());
  return tensors;
}

MergedTensor& MergeSource::Locate(const TensorInfo& tensor) const {
  const auto found = tensors_.find(tensor.name);
  MARCORO_CHECK(found != tensors_.end() && &found->second->info() == &tensor);
  return *found->second;
}

void MergeSource::Prefetch(const TensorInfo& tensor, int64_t first_row, int64_t count) {
  const MergedTensor& merged = Locate(tensor);
  const bool whole = merged.vocabulary() != nullptr ||
                     (merged.merger() == nullptr && method_->reads_whole_tensor(merged.merge()));
  for (const ParentTensor& parent : merged.parents()) {
    if (!whole) {
      parent.source->Prefetch(*parent.info, first_row, count);
      continue;
    }
    // The rest too, but first what is asked for: parents' tables may have fewer rows than the
    // merge.
    const int64_t begin = std::min(first_row, parent.info->rows());
    parent.source->Prefetch(*parent.info, begin, parent.info->rows() - begin);
    parent.source->Prefetch(*parent.info, 0, begin);
  }
}

void MergeSource::Discard(const TensorInfo& tensor) {
  for (const ParentTensor& parent : Locate(tensor).parents()) parent.source->Discard(*parent.info);
}

uint64_t MergeSource::StoredBytes() const {
  uint64_t bytes = 0;
  for (const std::unique_ptr<TensorSource>& parent : parents_) bytes += parent->StoredBytes();
  return bytes;
}

absl::Status MergeSource::Prepare(const TensorInfo& tensor, const ParallelFor& parallel) {
  MergedTensor& merged = Locate(tensor);
  if (merged.merger() != nullptr) return absl::OkStatus();
  auto merger = method_->Prepare(merged.merge(), plan_.seed, merged, parallel);
  if (!merger.ok()) return InRecipe(merger.status());
  merged.set_merger(*std::move(merger));
  return absl::OkStatus();
}

absl::Status MergeSource::ReadRows(const TensorInfo& tensor, int64_t first_row, int64_t count,
                                   float* out) {
  const MergedTensor& merged = Locate(tensor);
  MARCORO_CHECK(merged.merger() != nullptr);
  const int64_t columns = tensor.columns();
  const int64_t step = std::max<int64_t>(1, kMergeElements / std::max<int64_t>(1, columns));
  std::unique_ptr<Scratch> scratch = scratch_.Take();
  absl::Status status;
  for (int64_t done = 0; done < count && status.ok(); done += step) {
    status = MergeRows(merged, first_row + done, std::min(step, count - done), *scratch,
                       out + done * columns);
  }
  scratch_.Return(std::move(scratch));
  return status;
}

absl::Status MergeSource::MergeRows(const MergedTensor& tensor, int64_t first_row, int64_t count,
                                    Scratch& scratch, float* out) const {
  const int64_t columns = tensor.columns();
  const size_t inputs = tensor.parents().size();
  scratch.rows.resize(std::max(scratch.rows.size(), inputs));
  scratch.inputs.resize(scratch.rows.size());
  for (size_t i = 0; i < inputs; ++i) {
    std::vector<float>& rows = scratch.rows[i];
    rows.resize(std::max(rows.size(), static_cast<size_t>(count * columns)));
    absl::Status status = tensor.ReadRows(static_cast<int32_t>(i), first_row, count, rows.data());
    if (!status.ok()) return InRecipe(status);
    scratch.inputs[i] = rows.data();
  }
  tensor.merger()->Merge(first_row * columns, count * columns, scratch.inputs.data(), out);
  if (tensor.stored_dtype() != tensor.dtype()) {
    GetMergeKernels().rounded(tensor.stored_dtype()).round(out, count * columns);
  }
  for (int64_t row = 0; row < count; ++row) {
    if (AllFinite(out + row * columns, columns)) continue;
    return TensorError(
        tensor.merge(),
        absl::StrCat("row ", first_row + row,
                     " of the merge holds a number that is not finite (too large for ",
                     tensor.info().dtype, ")"));
  }
  return absl::OkStatus();
}

absl::Status MergeSource::CheckUnchanged() const {
  for (const std::unique_ptr<TensorSource>& parent : parents_) {
    if (absl::Status status = parent->CheckUnchanged(); !status.ok()) return InRecipe(status);
  }
  return absl::OkStatus();
}

absl::Status MergeSource::HashContents(const TensorInfo& tensor, Sha256& hash) {
  const MergedTensor& merged = Locate(tensor);
  const TensorMerge& merge = merged.merge();
  hash.Text("marcoro merge 1");
  hash.Text(plan_.method);
  hash.Text(plan_.dtype);
  hash.Text(plan_.out_dtype);
  hash.Number(static_cast<uint64_t>(merged.dtype()));
  hash.Number(plan_.seed);
  hash.Number(static_cast<uint64_t>(int64_t{merge.base}));
  HashParameters(merge.parameters, hash);
  hash.Number(merged.parents().size());
  for (size_t i = 0; i < merged.parents().size(); ++i) {
    const ParentTensor& parent = merged.parents()[i];
    HashParameters(merge.inputs[i].parameters, hash);
    hash.Text(parent.info->dtype);
    hash.Number(static_cast<uint64_t>(parent.info->rows()));
    if (absl::Status status = parent.source->HashContents(*parent.info, hash); !status.ok())
      return status;
  }
  if (merged.vocabulary() != nullptr) HashVocabulary(*merged.vocabulary(), hash);
  return absl::OkStatus();
}

}  // namespace marcoro
