#include "deploy/cli/samples.h"

#include <algorithm>

namespace marcoro {

void Samples::Add(double value) {
  maximum_ = count_ == 0 ? value : std::max(maximum_, value);
  sum_ += value;
  ++count_;
  if (kept_.size() < capacity_) {
    kept_.push_back(value);
    return;
  }
  const auto place = static_cast<uint64_t>(random_.Uniform() * static_cast<double>(count_));
  if (place < kept_.size()) kept_[place] = value;
}

void Samples::Add(const Samples& other) {
  for (const double value : other.kept_) Add(value);
}

Summary Samples::Summarize() const {
  Summary summary;
  summary.count = count_;
  if (count_ == 0) return summary;
  std::vector<double> sorted = kept_;
  std::sort(sorted.begin(), sorted.end());
  const auto percentile = [&sorted](size_t percent) {
    return sorted[(percent * sorted.size() + 99) / 100 - 1];
  };
  summary.mean = sum_ / static_cast<double>(count_);
  summary.p50 = percentile(50);
  summary.p90 = percentile(90);
  summary.p95 = percentile(95);
  summary.p99 = percentile(99);
  summary.maximum = maximum_;
  return summary;
}

}  // namespace marcoro
