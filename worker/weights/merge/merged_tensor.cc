#include "worker/weights/merge/merged_tensor.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/weights/merge/merge_kernels.h"
#include "worker/weights/model_tensors.h"
#include "worker/weights/quantize.h"
#include "worker/weights/row_kernels.h"
#include "worker/weights/weight_scales.h"

namespace marcoro {
namespace {

DType TypeNamed(std::string_view name) {
  if (name == "BF16") return DType::kBF16;
  if (name == "F16") return DType::kF16;
  return DType::kF32;
}

// The type of a parent's tensor; of FP8 codes the one that their checkpoint has for plain numbers.
DType TypeOf(const ParentTensor& parent) {
  if (parent.info->dtype != kE4M3Name) return TypeNamed(parent.info->dtype);
  const TensorInfo* plain = parent.source->Find(kEmbeddingName);
  return plain == nullptr || plain->dtype == kE4M3Name ? DType::kBF16 : TypeNamed(plain->dtype);
}

const char* NameOf(DType dtype) {
  if (dtype == DType::kBF16) return "BF16";
  if (dtype == DType::kF16) return "F16";
  return "F32";
}

// The type of the parents' tensors, or the smallest that holds all of theirs.
DType CommonType(const std::vector<ParentTensor>& parents) {
  const DType first = TypeOf(parents[0]);
  const bool same =
      std::all_of(parents.begin(), parents.end(),
                  [first](const ParentTensor& parent) { return TypeOf(parent) == first; });
  return same ? first : DType::kF32;
}

// 16-bit numbers that are read and converted at once, on the stack.
constexpr int64_t kReadElements = 32 * 1024;

// The bits of infinity.
constexpr uint16_t InfinityOf(DType dtype) { return dtype == DType::kBF16 ? 0x7f80 : 0x7c00; }

// The first of the rows that holds a number that is not finite.
int64_t FirstBadRow(const float* numbers, int64_t columns) {
  int64_t row = 0;
  while (AllFinite(numbers + row * columns, columns)) ++row;
  return row;
}

std::string Named(const MergePlan& plan, const MergeInput& input, const TensorInfo& info) {
  return absl::StrCat(plan.models[static_cast<size_t>(input.model)].reference, " (", info.origin,
                      ") has tensor ", info.name, " of shape ", FormatShape(info.shape));
}

absl::Status CheckShapes(const MergePlan& plan, const TensorMerge& merge,
                         const std::vector<ParentTensor>& parents, const VocabularyMap* map) {
  const TensorInfo& first = *parents[0].info;
  for (size_t i = 0; i < parents.size(); ++i) {
    const TensorInfo& info = *parents[i].info;
    const bool fits = map == nullptr
                          ? info.shape == first.shape
                          : info.shape.size() == 2 && info.shape[1] == first.shape.back();
    if (fits) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        plan.recipe, ": tensor ", merge.name, ": shapes differ: ",
        Named(plan, merge.inputs[0], first), ", ", Named(plan, merge.inputs[i], info)));
  }
  return absl::OkStatus();
}

// Whether every row that the map takes is there.
bool MapFits(const VocabularyMap& map, const std::vector<ParentTensor>& parents) {
  if (map.rows.size() != parents.size()) return false;
  const auto has = [&](size_t input, int32_t row) {
    return input < parents.size() && row >= 0 && row < parents[input].info->rows();
  };
  for (size_t i = 0; i < parents.size(); ++i) {
    if (map.rows[i].size() != map.rows[0].size()) return false;
    for (const int32_t row : map.rows[i]) {
      if (row >= 0 ? !has(i, row)
                   : static_cast<size_t>(-1 - int64_t{row}) >= map.substitutes.size())
        return false;
    }
  }
  for (const auto& rows : map.substitutes) {
    for (const VocabularyRow& row : rows) {
      if (!has(static_cast<size_t>(row.input), row.row)) return false;
    }
  }
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MergedTensor>> MergedTensor::Create(
    const MergePlan& plan, const TensorMerge& merge, std::vector<ParentTensor> parents) {
  std::unique_ptr<MergedTensor> tensor(new MergedTensor(merge, std::move(parents)));
  if (merge.vocabulary >= 0) {
    tensor->vocabulary_ = &plan.vocabularies[static_cast<size_t>(merge.vocabulary)];
  }
  const VocabularyMap* map = tensor->vocabulary_;
  absl::Status status = CheckShapes(plan, merge, tensor->parents_, map);
  if (!status.ok()) return status;
  if (map != nullptr && !MapFits(*map, tensor->parents_)) {
    return absl::InvalidArgumentError(
        absl::StrCat(plan.recipe, ": tensor ", merge.name,
                     ": the parents have other numbers of rows than their config.json says"));
  }
  tensor->dtype_ = plan.dtype.empty() ? CommonType(tensor->parents_) : TypeNamed(plan.dtype);
  tensor->stored_dtype_ = plan.out_dtype.empty() ? tensor->dtype_ : TypeNamed(plan.out_dtype);
  TensorInfo& info = tensor->info_;
  info.name = merge.name;
  info.dtype = NameOf(tensor->stored_dtype_);
  info.shape = tensor->parents_[0].info->shape;
  if (map != nullptr) info.shape[0] = static_cast<int64_t>(map->rows[0].size());
  info.origin = plan.recipe;
  info.bytes = static_cast<uint64_t>(info.rows() * info.columns()) * SizeOf(tensor->stored_dtype_);
  return tensor;
}

absl::Status MergedTensor::ReadRows(int32_t input, int64_t first_row, int64_t count,
                                    float* out) const {
  MARCORO_CHECK(first_row >= 0 && count >= 0 && first_row + count <= rows());
  const size_t index = static_cast<size_t>(input);
  return vocabulary_ == nullptr ? ReadStored(index, first_row, count, out)
                                : ReadMapped(index, first_row, count, out);
}

absl::Status MergedTensor::ReadStored(size_t input, int64_t first_row, int64_t count,
                                      float* out) const {
  const ParentTensor& parent = parents_[input];
  absl::StatusOr<bool> finite = StoredAsMerged(parent) ? ReadShorts(parent, first_row, count, out)
                                                       : ReadRounded(parent, first_row, count, out);
  if (!finite.ok()) return finite.status();
  if (*finite) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      parent.info->origin, ": tensor ", parent.info->name, ": row ",
      first_row + FirstBadRow(out, columns()),
      " holds a number that is not finite (NaN, infinite or too large for ", NameOf(dtype_), ")"));
}

// Whether the parent's numbers are of a 16-bit type already, in rows that fit the stack.
bool MergedTensor::StoredAsMerged(const ParentTensor& parent) const {
  return dtype_ != DType::kF32 && parent.source->StoredDType(*parent.info) == dtype_ &&
         columns() <= kReadElements;
}

// Looks at the 16 bits, half of what float32 has, while they are near.
absl::StatusOr<bool> MergedTensor::ReadShorts(const ParentTensor& parent, int64_t first_row,
                                              int64_t count, float* out) const {
  const RowKernels& kernels = GetRowKernels();
  const auto convert = dtype_ == DType::kBF16 ? kernels.from_bf16 : kernels.from_f16;
  const int64_t step = kReadElements / std::max<int64_t>(1, columns());
  std::array<uint16_t, kReadElements> stored;
  bool finite = true;
  for (int64_t done = 0; done < count; done += step) {
    const int64_t rows = std::min(step, count - done);
    absl::Status status =
        parent.source->ReadStored(*parent.info, first_row + done, rows, stored.data());
    if (!status.ok()) return status;
    const int64_t elements = rows * columns();
    finite &= kernels.max_magnitude_16(stored.data(), elements) < InfinityOf(dtype_);
    convert(stored.data(), elements, out + done * columns());
  }
  return finite;
}

absl::StatusOr<bool> MergedTensor::ReadRounded(const ParentTensor& parent, int64_t first_row,
                                               int64_t count, float* out) const {
  absl::Status status = parent.source->ReadRows(*parent.info, first_row, count, out);
  if (!status.ok()) return status;
  const int64_t elements = count * columns();
  if (parent.info->dtype != NameOf(dtype_)) {
    GetMergeKernels().rounded(dtype_).round(out, elements);
  }
  return AllFinite(out, elements);
}

absl::Status MergedTensor::ReadMapped(size_t input, int64_t first_row, int64_t count,
                                      float* out) const {
  const std::vector<int32_t>& rows = vocabulary_->rows[input];
  for (int64_t done = 0; done < count;) {
    const auto row = rows.begin() + first_row + done;
    float* to = out + done * columns();
    // Neighbouring rows at once.
    int64_t run = 1;
    while (*row >= 0 && done + run < count && row[run] == *row + run) ++run;
    absl::Status status =
        *row >= 0
            ? ReadStored(input, *row, run, to)
            : ReadSubstitute(vocabulary_->substitutes[static_cast<size_t>(-1 - int64_t{*row})], to);
    if (!status.ok()) return status;
    done += run;
  }
  return absl::OkStatus();
}

// The mean of the rows.
absl::Status MergedTensor::ReadSubstitute(const std::vector<VocabularyRow>& rows,
                                          float* out) const {
  if (rows.size() == 1) {
    return ReadStored(static_cast<size_t>(rows[0].input), rows[0].row, 1, out);
  }
  const RoundedMergeKernels& kernels = GetMergeKernels().rounded(dtype_);
  std::fill(out, out + columns(), 0.0f);
  std::vector<float> buffer(static_cast<size_t>(columns()));
  std::vector<float> sum(buffer.size());
  for (const VocabularyRow& row : rows) {
    absl::Status status = ReadStored(static_cast<size_t>(row.input), row.row, 1, buffer.data());
    if (!status.ok()) return status;
    kernels.add(out, buffer.data(), columns(), sum.data());
    std::copy(sum.begin(), sum.end(), out);
  }
  if (!rows.empty()) kernels.divide_by(static_cast<float>(rows.size()), out, columns());
  return absl::OkStatus();
}

}  // namespace marcoro
