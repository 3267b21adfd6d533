// The parts of a backend that follow from its memory being the program's own.
#include <cstring>
#include <memory>
#include <utility>

#include "kernels/backend.h"
#include "kernels/op_checks.h"
#include "kernels/row_stage.h"
#include "kernels/token_sampler.h"

namespace marcoro {
namespace {

// An op has run when its call returns: there is nothing to prepare or to repeat.
class PlainStepRunner final : public StepRunner {
 public:
  PlainStepRunner(Backend& backend, Body body) : backend_(backend), body_(std::move(body)) {}

  absl::Status Run(const StepInput& step) override {
    backend_.BeginStep(step);
    return body_(step);
  }

 private:
  Backend& backend_;
  const Body body_;
};

}  // namespace

std::unique_ptr<StepRunner> Backend::MakeStepRunner(const StepLimits&, bool,
                                                    StepRunner::Body body) {
  return std::make_unique<PlainStepRunner>(*this, std::move(body));
}

absl::Status Backend::Upload(const void* source, void* memory, size_t bytes) {
  if (bytes > 0) std::memcpy(memory, source, bytes);
  return absl::OkStatus();
}

absl::Status Backend::Download(const void* memory, void* out, size_t bytes) {
  if (bytes > 0) std::memcpy(out, memory, bytes);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<RowStage>> Backend::MakeRowStage(size_t bytes) const {
  return nullptr;
}

void Backend::AddRmsNormAndQuantize(const Tensor& residual, const Tensor& delta,
                                    const float* weight, float epsilon, const Tensor& out,
                                    const QuantizedActivations& quantized) {
  AddRmsNorm(residual, delta, weight, epsilon, out);
  QuantizeActivations(out, quantized);
}

void Backend::GatherRows(const Tensor& from, absl::Span<const int32_t> rows, const Tensor& to) {
  CheckGatherRows(from, rows, to);
  const size_t bytes = static_cast<size_t>(to.columns) * SizeOf(to.dtype);
  for (int64_t r = 0; r < to.rows; ++r) std::memcpy(to.RowBytes(r), from.RowBytes(rows[r]), bytes);
}

void Backend::CopyMatrix(const Tensor& from, const Tensor& to) {
  CheckCopyMatrix(from, to);
  const size_t bytes = static_cast<size_t>(to.columns) * SizeOf(to.dtype);
  for (int64_t r = 0; r < to.rows; ++r) std::memcpy(to.RowBytes(r), from.RowBytes(r), bytes);
}

absl::StatusOr<std::unique_ptr<TokenSampler>> Backend::MakeTokenSampler(
    const TokenSamplerLimits& limits) {
  return nullptr;
}

}  // namespace marcoro
