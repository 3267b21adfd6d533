#include <cmath>

#include "kernels/reference/ops.h"

namespace marcoro::reference {
namespace {

LogitSummary Summarize(const float* logits, int64_t count) {
  LogitSummary summary;
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(logits[i])) summary.has_nan = true;
    if (logits[i] > logits[summary.best]) summary.best = static_cast<int32_t>(i);
  }
  summary.max = logits[summary.best];
  if (std::isinf(summary.max)) {  // all masked, or one overflowed: nothing to add up
    summary.log_sum_exp = summary.max;
    return summary;
  }
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += std::exp(double{logits[i]} - summary.max);
  summary.log_sum_exp = summary.max + std::log(sum);
  return summary;
}

}  // namespace

void SummarizeLogits(const Tensor& logits, absl::Span<LogitSummary> out) {
  for (int64_t r = 0; r < logits.rows; ++r) {
    out[r] = Summarize(logits.Row<float>(r), logits.columns);
  }
}

}  // namespace marcoro::reference
