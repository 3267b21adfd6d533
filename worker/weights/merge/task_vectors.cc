#include "worker/weights/merge/task_vectors.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/weights/merge/largest_elements.h"
#include "worker/weights/merge/merge_kernels.h"
#include "worker/weights/merge/whole_tensor.h"

namespace marcoro {
namespace {

using Sparsity = TaskVectorTraits::Sparsity;

constexpr float kSmallestDivisor = 1e-8f;  // weights whose sum is smaller are not divided by it
constexpr double kSmallestNorm = 1e-7;     // nor is a smaller L1 norm scaled to another

// One δ and what becomes of it.
struct TaskVector {
  size_t input = 0;
  float weight = 0;
  double density = 1;
  bool dropped = false;  // nothing of it stays
  std::optional<LargestElements> largest;
  std::optional<RandomElements> random;
  float rescale = 1;

  bool sparse() const { return largest.has_value() || random.has_value(); }
};

// The numbers of a merge.
struct TaskVectorSum {
  DType dtype = DType::kBF16;
  size_t base = 0;
  std::vector<TaskVector> vectors;
  bool sign_consensus = false;
  bool normalize = false;
  float divisor = 1;  // without sign consensus: the sum of the weights
  float lambda = 1;

  const RoundedMergeKernels& rounded() const { return GetMergeKernels().rounded(dtype); }
};

float RoundTo(DType dtype, double value) {
  float rounded = static_cast<float>(value);
  GetMergeKernels().rounded(dtype).round(&rounded, 1);
  return rounded;
}

// out (count) = what stays of input - base, not yet scaled; `first` is their index in the tensor.
void Thin(const TaskVectorSum& sum, const TaskVector& vector, int64_t first, int64_t count,
          const float* input, const float* base, float* out) {
  const MergeKernels& kernels = GetMergeKernels();
  if (vector.dropped) {
    std::fill(out, out + count, 0.0f);
    return;
  }
  sum.rounded().subtract(input, base, count, out);
  if (vector.largest) kernels.keep_largest(*vector.largest, first, count, out);
  if (vector.random) kernels.keep_random(*vector.random, first, count, out);
}

class TaskVectorMerger : public TensorMerger {
 public:
  explicit TaskVectorMerger(TaskVectorSum sum) : sum_(std::move(sum)) {}

  void Merge(int64_t first, int64_t count, const float* const* inputs, float* out) const override {
    const RoundedMergeKernels& rounded = sum_.rounded();
    const float* base = inputs[sum_.base];
    if (sum_.vectors.empty()) {
      std::copy(base, base + count, out);
      return;
    }
    std::vector<float> weighted(sum_.sign_consensus ? sum_.vectors.size() * kMergeBlock
                                                    : size_t{kMergeBlock});
    float mixed[kMergeBlock];
    for (int64_t begin = 0; begin < count; begin += kMergeBlock) {
      const int64_t n = std::min(kMergeBlock, count - begin);
      if (sum_.sign_consensus) {
        MixAgreeing(first, begin, n, inputs, weighted, mixed);
      } else {
        MixAll(first, begin, n, inputs, weighted, mixed);
      }
      if (sum_.lambda != 1.0f) rounded.scale(sum_.lambda, mixed, n);
      rounded.add(base + begin, mixed, n, out + begin);
    }
  }

 private:
  // out (count) = a vector's weighted δ from element first + begin on
  void Weigh(const TaskVector& vector, int64_t first, int64_t begin, int64_t count,
             const float* const* inputs, float* out) const {
    Thin(sum_, vector, first + begin, count, inputs[vector.input] + begin,
         inputs[sum_.base] + begin, out);
    if (vector.rescale != 1.0f) sum_.rounded().scale(vector.rescale, out, count);
    sum_.rounded().scale(vector.weight, out, count);
  }

  void MixAll(int64_t first, int64_t begin, int64_t count, const float* const* inputs,
              std::vector<float>& weighted, float* mixed) const {
    std::fill(mixed, mixed + count, 0.0f);
    for (const TaskVector& vector : sum_.vectors) {
      Weigh(vector, first, begin, count, inputs, weighted.data());
      GetMergeKernels().accumulate(weighted.data(), count, mixed);
    }
    sum_.rounded().round(mixed, count);
    if (sum_.normalize) sum_.rounded().divide_by(sum_.divisor, mixed, count);
  }

  void MixAgreeing(int64_t first, int64_t begin, int64_t count, const float* const* inputs,
                   std::vector<float>& weighted, float* mixed) const {
    const MergeKernels& kernels = GetMergeKernels();
    float majority[kMergeBlock] = {};
    for (size_t i = 0; i < sum_.vectors.size(); ++i) {
      float* vector = weighted.data() + i * kMergeBlock;
      Weigh(sum_.vectors[i], first, begin, count, inputs, vector);
      kernels.accumulate(vector, count, majority);
    }
    sum_.rounded().round(majority, count);
    float weights[kMergeBlock] = {};
    std::fill(mixed, mixed + count, 0.0f);
    for (size_t i = 0; i < sum_.vectors.size(); ++i) {
      kernels.accumulate_agreeing(weighted.data() + i * kMergeBlock, majority,
                                  sum_.vectors[i].weight, count, mixed, weights);
    }
    sum_.rounded().round(mixed, count);
    if (!sum_.normalize) return;
    sum_.rounded().round(weights, count);
    kernels.replace_zeros(weights, count);
    sum_.rounded().divide(weights, mixed, count);
  }

  const TaskVectorSum sum_;
};

// Different for every tensor and input.
uint64_t RandomKey(uint64_t seed, std::string_view tensor, size_t input) {
  const auto mix = [](uint64_t x) {  // SplitMix64's finalizer
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  };
  uint64_t key = mix(seed + 0x9e3779b97f4a7c15u);
  for (const char c : tensor) key = mix(key ^ static_cast<unsigned char>(c));
  return mix(key + (input + 1) * 0x9e3779b97f4a7c15u);
}

absl::Status ChooseLargest(TaskVectorSum& sum, const MergeInputs& inputs,
                           const ParallelFor& parallel) {
  const int64_t elements = inputs.rows() * inputs.columns();
  std::vector<LargestRequest> requests;
  std::vector<TaskVector*> asking;
  for (TaskVector& vector : sum.vectors) {
    if (vector.density >= 1 || elements == 0) continue;
    vector.dropped = vector.density <= 0;
    if (vector.dropped) continue;
    const int64_t wanted = static_cast<int64_t>(vector.density * static_cast<double>(elements));
    requests.push_back({static_cast<int32_t>(vector.input), std::max<int64_t>(1, wanted)});
    asking.push_back(&vector);
  }
  auto found = FindLargest(inputs, static_cast<int32_t>(sum.base), requests, parallel);
  if (!found.ok()) return found.status();
  for (size_t i = 0; i < asking.size(); ++i) asking[i]->largest = (*found)[i];
  return absl::OkStatus();
}

void ChooseRandom(TaskVectorSum& sum, uint64_t seed, std::string_view tensor) {
  for (TaskVector& vector : sum.vectors) {
    if (vector.density >= 1) continue;
    vector.dropped = vector.density <= 0;
    const double limit = std::max(0.0, vector.density) * 0x1p32;
    vector.random = RandomElements{RandomKey(seed, tensor, vector.input),
                                   static_cast<uint32_t>(std::min(limit, 0x1p32 - 1))};
  }
}

// The factor from one L1 norm to another, rounded where mergekit's is: its sums are of the tensors'
// type if that is BF16, and of F32 otherwise.
float NormRatio(DType dtype, double all, double kept) {
  const DType type = dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
  const float before = RoundTo(type, all);
  const float after = RoundTo(type, kept);
  if (before < kSmallestNorm || after < kSmallestNorm) return 1.0f;
  return RoundTo(type, before / after);
}

// Scales what stays of every sparse δ to the L1 norm that all of it has.
absl::Status MatchNorms(TaskVectorSum& sum, const MergeInputs& inputs,
                        const ParallelFor& parallel) {
  std::vector<TaskVector*> vectors;
  std::vector<int32_t> indices = {static_cast<int32_t>(sum.base)};
  for (TaskVector& vector : sum.vectors) {
    if (!vector.sparse() || vector.dropped) continue;
    vectors.push_back(&vector);
    indices.push_back(static_cast<int32_t>(vector.input));
  }
  if (vectors.empty()) return absl::OkStatus();
  const std::vector<double> zeros(static_cast<size_t>(CountPieces(inputs)));
  std::vector<std::vector<double>> all(vectors.size(), zeros);  // by piece
  std::vector<std::vector<double>> kept = all;
  absl::Status status = ForEachPiece(inputs, indices, parallel, [&](const TensorPiece& piece) {
    std::vector<float> delta(static_cast<size_t>(piece.count));
    const size_t index = static_cast<size_t>(piece.index);
    for (size_t i = 0; i < vectors.size(); ++i) {
      sum.rounded().subtract(piece.inputs[i + 1], piece.inputs[0], piece.count, delta.data());
      all[i][index] = GetMergeKernels().magnitudes(delta.data(), piece.count);
      Thin(sum, *vectors[i], piece.first, piece.count, piece.inputs[i + 1], piece.inputs[0],
           delta.data());
      kept[i][index] = GetMergeKernels().magnitudes(delta.data(), piece.count);
    }
  });
  for (size_t i = 0; i < vectors.size(); ++i) {
    vectors[i]->rescale = NormRatio(sum.dtype, SumInTree(all[i]), SumInTree(kept[i]));
  }
  return status;
}

std::vector<MergeMethodParameter> Parameters(const TaskVectorTraits& traits) {
  return {
      {.name = "weight", .per_input = true},
      {.name = "density", .per_input = true, .fallback = 1},
      {.name = "normalize", .fallback = traits.normalize ? 1 : 0},
      {.name = "rescale", .fallback = traits.rescale ? 1 : 0},
      {.name = "lambda", .fallback = 1},
      {.name = "int8_mask", .fallback = 0},
  };
}

}  // namespace

TaskVectorMethod::TaskVectorMethod(const TaskVectorTraits& traits)
    : traits_(traits), parameters_(Parameters(traits)) {}

bool TaskVectorMethod::reads_whole_tensor(const TensorMerge& merge) const {
  if (traits_.sparsity == Sparsity::kNone) return false;
  const bool rescale = MergeParameter(*this, merge.parameters, "rescale") != 0;
  if (traits_.sparsity == Sparsity::kRandom && !rescale) return false;
  for (size_t i = 0; i < merge.inputs.size(); ++i) {
    if (static_cast<int32_t>(i) == merge.base) continue;
    const double density = MergeParameter(*this, merge.inputs[i].parameters, "density");
    if (density > 0 && density < 1) return true;
  }
  return false;
}

absl::StatusOr<std::unique_ptr<TensorMerger>> TaskVectorMethod::Prepare(
    const TensorMerge& merge, uint64_t seed, const MergeInputs& inputs,
    const ParallelFor& parallel) const {
  const auto number = [&](std::string_view name) {
    return MergeParameter(*this, merge.parameters, name);
  };
  TaskVectorSum sum;
  sum.dtype = inputs.dtype();
  sum.base = static_cast<size_t>(merge.base);
  sum.sign_consensus = traits_.sign_consensus;
  sum.normalize = number("normalize") != 0;
  sum.lambda = static_cast<float>(number("lambda"));
  float weights = 0;
  for (size_t i = 0; i < merge.inputs.size(); ++i) {
    if (i == sum.base) continue;
    const MergeParameters& given = merge.inputs[i].parameters;
    TaskVector vector;
    vector.input = i;
    vector.weight = RoundTo(sum.dtype, MergeParameter(*this, given, "weight"));
    vector.density = MergeParameter(*this, given, "density");
    weights += vector.weight;
    sum.vectors.push_back(vector);
  }
  weights = RoundTo(sum.dtype, weights);
  sum.divisor = std::fabs(weights) < kSmallestDivisor ? 1.0f : weights;

  absl::Status status;
  if (traits_.sparsity == Sparsity::kLargest) status = ChooseLargest(sum, inputs, parallel);
  if (traits_.sparsity == Sparsity::kRandom) ChooseRandom(sum, seed, merge.name);
  if (status.ok() && number("rescale") != 0) status = MatchNorms(sum, inputs, parallel);
  if (!status.ok()) return status;
  return std::make_unique<TaskVectorMerger>(std::move(sum));
}

}  // namespace marcoro
