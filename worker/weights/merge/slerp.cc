// Spherical interpolation between two tensors, each taken as one long vector: from the base at
// t = 0 to the other at t = 1. Nearly parallel (or opposite) ones are interpolated linearly.

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "worker/weights/merge/merge_kernels.h"
#include "worker/weights/merge/merge_method.h"
#include "worker/weights/merge/whole_tensor.h"

namespace marcoro {
namespace {

constexpr double kParallelCosine = 0.9995;
constexpr double kSmallestNorm = 1e-8;  // what is shorter counts as of length 1

// of base and other
struct Coefficients {
  float base = 1.0f;
  float other = 0.0f;
};

class SlerpMerger : public TensorMerger {
 public:
  SlerpMerger(const Coefficients& coefficients, size_t base, size_t other, DType dtype)
      : coefficients_(coefficients), base_(base), other_(other), dtype_(dtype) {}

  void Merge(int64_t first, int64_t count, const float* const* inputs, float* out) const override {
    GetMergeKernels().rounded(dtype_).combine(coefficients_.base, inputs[base_],
                                              coefficients_.other, inputs[other_], count, out);
  }

 private:
  const Coefficients coefficients_;
  const size_t base_;
  const size_t other_;
  const DType dtype_;
};

// The cosine of the angle between two inputs.
absl::StatusOr<double> Cosine(const MergeInputs& inputs, int32_t base, int32_t other,
                              const ParallelFor& parallel) {
  constexpr size_t kSums = 3;
  const size_t pieces = static_cast<size_t>(CountPieces(inputs));
  std::array<std::vector<double>, kSums> sums;
  for (std::vector<double>& sum : sums) sum.resize(pieces);
  absl::Status status =
      ForEachPiece(inputs, std::array{base, other}, parallel, [&sums](const TensorPiece& piece) {
        double of_piece[kSums] = {};
        GetMergeKernels().products(piece.inputs[0], piece.inputs[1], piece.count, of_piece);
        for (size_t i = 0; i < kSums; ++i) sums[i][static_cast<size_t>(piece.index)] = of_piece[i];
      });
  if (!status.ok()) return status;
  double norms = 1;
  for (size_t i = 0; i < 2; ++i) {
    const double norm = std::sqrt(SumInTree(sums[i]));
    if (norm > kSmallestNorm) norms *= norm;
  }
  return std::clamp(SumInTree(sums[2]) / norms, -1.0, 1.0);
}

// 1 - t is taken in float32, as mergekit does; the rest in double and rounded once.
Coefficients Interpolate(float t, double cosine) {
  const float rest = 1.0f - t;
  if (std::fabs(cosine) > kParallelCosine) return {rest, t};
  const double angle = std::acos(cosine);
  return {static_cast<float>(std::sin(double{rest} * angle) / std::sin(angle)),
          static_cast<float>(std::sin(double{t} * angle) / std::sin(angle))};
}

class Slerp : public MergeMethod {
 public:
  std::string_view name() const override { return "slerp"; }
  Base base() const override { return Base::kRequired; }
  std::span<const MergeMethodParameter> parameters() const override {
    static constexpr MergeMethodParameter kParameters[] = {{.name = "t"}};
    return kParameters;
  }
  int32_t max_inputs() const override { return 2; }

  bool reads_whole_tensor(const TensorMerge& merge) const override {
    const float t = static_cast<float>(MergeParameter(*this, merge.parameters, "t"));
    // At the ends both ways of interpolation give exactly 1 and 0.
    return merge.inputs.size() == 2 && t != 0.0f && t != 1.0f;
  }

  absl::StatusOr<std::unique_ptr<TensorMerger>> Prepare(
      const TensorMerge& merge, uint64_t seed, const MergeInputs& inputs,
      const ParallelFor& parallel) const override {
    const float t = static_cast<float>(MergeParameter(*this, merge.parameters, "t"));
    const int32_t base = merge.base;
    if (merge.inputs.size() == 1) {  // a tensor without a partner stays as it is
      return std::make_unique<SlerpMerger>(Coefficients{}, 0, 0, inputs.dtype());
    }
    double cosine = 1;
    if (reads_whole_tensor(merge)) {
      absl::StatusOr<double> measured = Cosine(inputs, base, 1 - base, parallel);
      if (!measured.ok()) return measured.status();
      cosine = *measured;
    }
    return std::make_unique<SlerpMerger>(Interpolate(t, cosine), static_cast<size_t>(base),
                                         static_cast<size_t>(1 - base), inputs.dtype());
  }
};

}  // namespace

const MergeMethod& SlerpMethod() {
  static const Slerp method;
  return method;
}

}  // namespace marcoro
