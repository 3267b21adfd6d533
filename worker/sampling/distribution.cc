#include "worker/sampling/distribution.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/numeric/int128.h"
#include "kernels/check.h"
#include "worker/sampling/token_weights.h"

namespace marcoro {
namespace {

// Entries whose weights are summed up together, to be skipped together by a draw.
constexpr size_t kBlock = 256;

// Distances fall into bins of 1/32, the last of which holds all that is beyond: such tokens hardly
// weigh anything.
constexpr size_t kBins = 1024;
constexpr float kBinsPerUnit = 32;

size_t BinOf(float distance) {
  const float bin = distance * kBinsPerUnit;
  return bin < static_cast<float>(kBins - 1) ? static_cast<size_t>(static_cast<int32_t>(bin))
                                             : kBins - 1;
}

// Σ weight · exponent / Σ weight, in an order of its own that does not depend on the compiler.
// Exponents of weightless tokens may be infinite.
double MeanExponent(absl::Span<const uint32_t> weights, absl::Span<const float> exponents) {
  constexpr size_t kLanes = 8;
  std::array<double, kLanes> sums = {};
  uint64_t total = 0;
  for (size_t begin = 0; begin < weights.size(); begin += kLanes) {
    const size_t count = std::min(kLanes, weights.size() - begin);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t weight = weights[begin + i];
      if (weight == 0) continue;
      sums[i] += static_cast<double>(weight) * static_cast<double>(exponents[begin + i]);
      total += weight;
    }
  }
  double sum = 0;
  for (const double lane : sums) sum += lane;
  return sum / static_cast<double>(total);
}

}  // namespace

void TokenDistribution::Build(absl::Span<const float> logits, float max,
                              const SamplingParams& params) {
  MARCORO_CHECK(std::isfinite(max));
  ids_.clear();
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size()) {
    KeepTopK(logits, params.top_k);
    logits = logits_;
  }
  exponents_.resize(logits.size());
  weights_.resize(logits.size());
  WeighTokens(logits, max, params.temperature, absl::MakeSpan(exponents_),
              absl::MakeSpan(weights_));
  if (params.top_p < 1) KeepTopP(params.top_p);
  if (params.min_p > 0) KeepMinP(params.min_p);
  if (params.typical_p < 1) KeepTypical(params.typical_p);
  SumUp();
}

TokenId TokenDistribution::IdOf(size_t index) const {
  return ids_.empty() ? static_cast<TokenId>(index) : ids_[index];
}

void TokenDistribution::KeepTopK(absl::Span<const float> logits, int32_t top_k) {
  SelectTop(logits, top_k, &candidates_);
  for (const Candidate& candidate : candidates_) ids_.push_back(candidate.id);
  std::sort(ids_.begin(), ids_.end());
  logits_.clear();
  for (const TokenId id : ids_) logits_.push_back(logits[id]);
}

void TokenDistribution::KeepTopP(float top_p) {
  distances_.resize(exponents_.size());
  for (size_t i = 0; i < exponents_.size(); ++i) distances_[i] = -exponents_[i];
  KeepNearest(top_p);
}

void TokenDistribution::KeepMinP(float min_p) {
  const auto least =
      static_cast<uint32_t>(std::ceil(std::min(1.0, static_cast<double>(min_p)) * kFullWeight));
  for (uint32_t& weight : weights_) weight = weight >= least ? weight : 0;
}

// A token's surprise is log Z - exponent, the entropy is its mean: log Z cancels in their
// difference.
void TokenDistribution::KeepTypical(float typical_p) {
  const auto mean = static_cast<float>(MeanExponent(weights_, exponents_));
  distances_.resize(exponents_.size());
  for (size_t i = 0; i < exponents_.size(); ++i) distances_[i] = std::abs(mean - exponents_[i]);
  KeepNearest(typical_p);
}

// Cuts off all but the first entries, by (distance, id), whose weights reach the fraction p of the
// whole. No sorting: a histogram finds the bin in which the sum of weights passes the bound, and a
// selection within it the entry.
void TokenDistribution::KeepNearest(float p) {
  histogram_.assign(kBins, 0);
  uint64_t total = 0;
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i] == 0) continue;
    histogram_[BinOf(distances_[i])] += weights_[i];
    total += weights_[i];
  }
  // The sum that reaches p is the first that is more than this.
  const double wanted = std::ceil(static_cast<double>(p) * static_cast<double>(total));
  uint64_t before = std::clamp<uint64_t>(static_cast<uint64_t>(wanted), 1, total) - 1;
  size_t bin = 0;
  while (before >= histogram_[bin]) before -= histogram_[bin++];

  candidates_.clear();
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i] == 0 || BinOf(distances_[i]) != bin) continue;
    candidates_.push_back(
        {.key = -distances_[i], .id = static_cast<int32_t>(i), .weight = weights_[i]});
  }
  const Candidate& last = candidates_[SelectByWeight(absl::MakeSpan(candidates_), before)];
  const float farthest = -last.key;
  const auto last_index = static_cast<size_t>(last.id);
  for (size_t i = 0; i < weights_.size(); ++i) {
    const bool kept = distances_[i] < farthest || (distances_[i] == farthest && i <= last_index);
    weights_[i] = kept ? weights_[i] : 0;
  }
}

void TokenDistribution::SumUp() {
  block_sums_.clear();
  total_ = 0;
  for (size_t begin = 0; begin < weights_.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, weights_.size());
    uint64_t sum = 0;
    for (size_t i = begin; i < end; ++i) sum += weights_[i];
    block_sums_.push_back(sum);
    total_ += sum;
  }
}

TokenId TokenDistribution::Draw(uint64_t bits) const {
  uint64_t target = absl::Uint128Low64((absl::uint128(bits) * total_) >> 53);
  size_t block = 0;
  while (target >= block_sums_[block]) target -= block_sums_[block++];
  size_t index = block * kBlock;
  while (target >= weights_[index]) target -= weights_[index++];
  return IdOf(index);
}

std::vector<std::pair<TokenId, double>> TokenDistribution::Probabilities() const {
  std::vector<std::pair<TokenId, double>> probabilities;
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i] == 0) continue;
    probabilities.emplace_back(IdOf(i),
                               static_cast<double>(weights_[i]) / static_cast<double>(total_));
  }
  return probabilities;
}

}  // namespace marcoro
