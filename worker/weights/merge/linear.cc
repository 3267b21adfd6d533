// Weighted sum of tensors, or weighted mean.

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/weights/merge/merge_kernels.h"
#include "worker/weights/merge/merge_method.h"

namespace marcoro {
namespace {

class LinearMerger : public TensorMerger {
 public:
  LinearMerger(std::vector<float> weights, float divisor, DType dtype)
      : weights_(std::move(weights)), divisor_(divisor), dtype_(dtype) {}

  void Merge(int64_t first, int64_t count, const float* const* inputs, float* out) const override {
    const MergeKernels& kernels = GetMergeKernels();
    for (int64_t begin = 0; begin < count; begin += kMergeBlock) {
      const int64_t n = std::min(kMergeBlock, count - begin);
      std::fill(out + begin, out + begin + n, 0.0f);
      for (size_t i = 0; i < weights_.size(); ++i) {
        kernels.accumulate_product(weights_[i], inputs[i] + begin, n, out + begin);
      }
      kernels.rounded(dtype_).divide_by(divisor_, out + begin, n);
    }
  }

 private:
  const std::vector<float> weights_;
  const float divisor_;
  const DType dtype_;
};

class Linear : public MergeMethod {
 public:
  std::string_view name() const override { return "linear"; }
  Base base() const override { return Base::kUnused; }
  std::span<const MergeMethodParameter> parameters() const override {
    static constexpr MergeMethodParameter kParameters[] = {
        {.name = "weight", .per_input = true},
        {.name = "normalize", .fallback = 1},
    };
    return kParameters;
  }

  absl::StatusOr<std::unique_ptr<TensorMerger>> Prepare(
      const TensorMerge& merge, uint64_t seed, const MergeInputs& inputs,
      const ParallelFor& parallel) const override {
    std::vector<float> weights;
    float sum = 0;
    for (const MergeInput& input : merge.inputs) {
      weights.push_back(static_cast<float>(MergeParameter(*this, input.parameters, "weight")));
      sum += weights.back();
    }
    const bool normalize = MergeParameter(*this, merge.parameters, "normalize") != 0;
    if (normalize && sum == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", merge.name,
          ": the weights sum to 0, so that they cannot be normalized (normalize: false "
          "leaves them as they are)"));
    }
    return std::make_unique<LinearMerger>(std::move(weights), normalize ? sum : 1.0f,
                                          inputs.dtype());
  }
};

}  // namespace

const MergeMethod& LinearMethod() {
  static const Linear method;
  return method;
}

}  // namespace marcoro
