#include "worker/weights/random_source.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/weights/model_tensors.h"
#include "worker/weights/row_kernels.h"
#include "worker/weights/sha256.h"

namespace marcoro {
namespace {

const char* StoredDTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    default:
      return "BF16";
  }
}

// SplitMix64's finalizer.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t RowKey(uint64_t seed, std::string_view name, int64_t row) {
  uint64_t key = Mix(seed + 0x9e3779b97f4a7c15u);
  for (const char c : name) key = Mix(key ^ static_cast<unsigned char>(c));
  return Mix(key + static_cast<uint64_t>(row) * 0x9e3779b97f4a7c15u);
}

}  // namespace

RandomSource::RandomSource(const ModelConfig& config, uint64_t seed) : seed_(seed) {
  for (const ModelTensor& tensor : ModelTensors(config)) {
    TensorInfo info;
    info.name = tensor.name;
    info.dtype = StoredDTypeName(config.dtype);
    info.shape = tensor.shape;
    info.origin = "random weights";
    info.bytes = static_cast<uint64_t>(info.rows() * info.columns()) * SizeOf(config.dtype);
    tensors_.emplace(info.name, std::move(info));
  }
}

std::string RandomSource::Description() const {
  return absl::StrCat("random weights (", tensors_.size(), " tensors, seed ", seed_, ")");
}

const TensorInfo* RandomSource::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

std::vector<const TensorInfo*> RandomSource::Tensors() const {
  std::vector<const TensorInfo*> tensors;
  for (const auto& [name, info] : tensors_) tensors.push_back(&info);
  return tensors;
}

absl::Status RandomSource::ReadRows(const TensorInfo& tensor, int64_t first_row, int64_t count,
                                    float* out) {
  MARCORO_CHECK(first_row >= 0 && count >= 0 && first_row + count <= tensor.rows());
  const int64_t columns = tensor.columns();
  if (tensor.shape.size() == 1) {
    std::fill(out, out + count * columns, 1.0f);
    return absl::OkStatus();
  }
  // A uniform number over [-limit, limit) has the standard deviation limit / sqrt(3).
  const float limit = static_cast<float>(std::sqrt(3.0 / static_cast<double>(columns)));
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t key = RowKey(seed_, tensor.name, first_row + i);
    GetRowKernels().random(key, columns, limit, out + i * columns);
  }
  return absl::OkStatus();
}

absl::Status RandomSource::HashContents(const TensorInfo& tensor, Sha256& hash) {
  hash.Text("marcoro random weights 1");
  hash.Number(seed_);
  return absl::OkStatus();
}

}  // namespace marcoro
