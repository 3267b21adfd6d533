// One tensor as it is, or times a number: what stacks layers of several models.

#include <algorithm>

#include "worker/weights/merge/merge_kernels.h"
#include "worker/weights/merge/merge_method.h"

namespace marcoro {
namespace {

class PassthroughMerger : public TensorMerger {
 public:
  PassthroughMerger(float scale, DType dtype) : scale_(scale), dtype_(dtype) {}

  void Merge(int64_t first, int64_t count, const float* const* inputs, float* out) const override {
    std::copy(inputs[0], inputs[0] + count, out);
    if (scale_ != 1.0f) GetMergeKernels().rounded(dtype_).scale(scale_, out, count);
  }

 private:
  const float scale_;
  const DType dtype_;
};

class Passthrough : public MergeMethod {
 public:
  std::string_view name() const override { return "passthrough"; }
  Base base() const override { return Base::kUnused; }
  std::span<const MergeMethodParameter> parameters() const override {
    static constexpr MergeMethodParameter kParameters[] = {
        {.name = "scale", .per_input = true, .fallback = 1},
    };
    return kParameters;
  }
  int32_t max_inputs() const override { return 1; }

  absl::StatusOr<std::unique_ptr<TensorMerger>> Prepare(
      const TensorMerge& merge, uint64_t seed, const MergeInputs& inputs,
      const ParallelFor& parallel) const override {
    const double scale = MergeParameter(*this, merge.inputs[0].parameters, "scale");
    return std::make_unique<PassthroughMerger>(static_cast<float>(scale), inputs.dtype());
  }
};

}  // namespace

const MergeMethod& PassthroughMethod() {
  static const Passthrough method;
  return method;
}

}  // namespace marcoro
