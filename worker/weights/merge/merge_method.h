// One way to merge tensors. Each has a file of its own, named after it, and a line in
// merge_methods.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "worker/weights/merge/merge_plan.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

struct MergeMethodParameter {
  std::string_view name;
  // Else one number for the whole tensor. A method that requires a base asks it for none.
  bool per_input = false;
  std::optional<double> fallback = std::nullopt;  // none: a recipe must give it
};

// A tensor's inputs as matrices of float32, already rounded to dtype().
class MergeInputs {
 public:
  virtual ~MergeInputs() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t columns() const = 0;
  // The type that a method computes in, as mergekit does: the recipe's, or else the one that holds
  // the inputs' types. kBF16, kF16 or kF32.
  virtual DType dtype() const = 0;
  // out (count, columns) = rows [first_row, first_row + count) of input `input`. May run
  // concurrently. INVALID_ARGUMENT, naming parent, tensor and row, for a number that is not finite.
  virtual absl::Status ReadRows(int32_t input, int64_t first_row, int64_t count,
                                float* out) const = 0;
};

// A tensor that is ready to be merged piece by piece. Thread-safe. The result for an element
// depends on nothing but the tensor: not on pieces, threads or ranks.
class TensorMerger {
 public:
  virtual ~TensorMerger() = default;
  // out (count) = merged elements [first, first + count) in float32, rounded to the inputs'
  // dtype(); inputs[i] (count) are those of input i. Elements are counted in row-major order.
  virtual void Merge(int64_t first, int64_t count, const float* const* inputs,
                     float* out) const = 0;
};

class MergeMethod {
 public:
  enum class Base { kUnused, kOptional, kRequired };

  virtual ~MergeMethod() = default;
  virtual std::string_view name() const = 0;
  virtual Base base() const = 0;
  virtual std::span<const MergeMethodParameter> parameters() const = 0;
  // Least and most inputs, the base among them.
  virtual int32_t min_inputs() const { return 1; }
  virtual int32_t max_inputs() const { return 1 << 10; }

  // Whether the tensor's inputs are read whole by Prepare, before their rows are.
  virtual bool reads_whole_tensor(const TensorMerge& merge) const { return false; }

  // Takes what depends on the whole tensor, if anything. `seed` is the recipe's. The merge has as
  // many inputs as the method takes, a base if it requires one, and every parameter without a
  // fallback. INVALID_ARGUMENT for numbers that the method cannot merge with; errors of ReadRows.
  virtual absl::StatusOr<std::unique_ptr<TensorMerger>> Prepare(
      const TensorMerge& merge, uint64_t seed, const MergeInputs& inputs,
      const ParallelFor& parallel) const = 0;
};

// Null if there is none of that name.
const MergeMethod* FindMergeMethod(std::string_view name);
std::vector<std::string_view> MergeMethodNames();

// The value in `given`, or else the method's fallback.
double MergeParameter(const MergeMethod& method, const MergeParameters& given,
                      std::string_view name);

}  // namespace marcoro
