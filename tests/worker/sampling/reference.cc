#include "tests/worker/sampling/reference.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <set>

namespace marcoro {
namespace {

// Ids of positive probability, sorted by rising `cost`, then by id.
std::vector<size_t> Sorted(const std::vector<double>& p,
                           const std::function<double(size_t)>& cost) {
  std::vector<size_t> ids;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] > 0) ids.push_back(i);
  }
  std::sort(ids.begin(), ids.end(), [&](size_t a, size_t b) {
    const double cost_a = cost(a);
    const double cost_b = cost(b);
    return cost_a != cost_b ? cost_a < cost_b : a < b;
  });
  return ids;
}

void KeepFirst(const std::vector<size_t>& ids, size_t count, std::vector<double>* p) {
  for (size_t i = count; i < ids.size(); ++i) (*p)[ids[i]] = 0;
  const double sum = std::accumulate(p->begin(), p->end(), 0.0);
  for (double& value : *p) value /= sum;
}

// How many of the ids it takes until their probabilities reach `mass`.
size_t CountToReach(const std::vector<size_t>& ids, const std::vector<double>& p, double mass) {
  double sum = 0;
  size_t count = 0;
  while (count < ids.size() && sum < mass) sum += p[ids[count++]];
  return count;
}

}  // namespace

std::vector<double> ReferenceDistribution(const std::vector<float>& logits,
                                          const SamplingParams& params,
                                          const std::vector<TokenId>& prompt,
                                          const std::vector<TokenId>& generated) {
  std::vector<double> x(logits.begin(), logits.end());
  std::set<TokenId> seen(prompt.begin(), prompt.end());
  seen.insert(generated.begin(), generated.end());
  for (const TokenId id : seen) {
    x[id] = x[id] > 0 ? x[id] / params.repetition_penalty : x[id] * params.repetition_penalty;
  }
  for (const TokenId id : std::set<TokenId>(generated.begin(), generated.end())) {
    x[id] -= params.presence_penalty;
    x[id] -= params.frequency_penalty * std::count(generated.begin(), generated.end(), id);
  }
  for (const auto& [id, bias] : params.logit_bias) x[id] += bias;

  const double max = *std::max_element(x.begin(), x.end());
  std::vector<double> p(x.size());
  for (size_t i = 0; i < x.size(); ++i) p[i] = std::exp((x[i] - max) / params.temperature);
  const auto likeliest = [&] { return Sorted(p, [&](size_t i) { return -x[i]; }); };
  KeepFirst({}, 0, &p);
  if (params.top_k > 0) {
    const std::vector<size_t> ids = likeliest();
    KeepFirst(ids, std::min<size_t>(params.top_k, ids.size()), &p);
  }
  if (params.top_p < 1) {
    const std::vector<size_t> ids = likeliest();
    KeepFirst(ids, CountToReach(ids, p, params.top_p), &p);
  }
  const std::vector<size_t> ids = likeliest();
  size_t count = 0;
  while (count < ids.size() && p[ids[count]] >= params.min_p * p[ids[0]]) ++count;
  KeepFirst(ids, count, &p);
  if (params.typical_p < 1) {
    double entropy = 0;
    for (const double value : p) entropy -= value > 0 ? value * std::log(value) : 0;
    const std::vector<size_t> typical =
        Sorted(p, [&](size_t i) { return std::abs(-std::log(p[i]) - entropy); });
    KeepFirst(typical, CountToReach(typical, p, params.typical_p), &p);
  }
  return p;
}

LogitSummary ReferenceSummary(const std::vector<float>& logits) {
  LogitSummary summary;
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) summary.has_nan = true;
    if (logits[i] > logits[summary.best]) summary.best = static_cast<int32_t>(i);
  }
  summary.max = logits[summary.best];
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - summary.max);
  summary.log_sum_exp = summary.max + std::log(sum);
  return summary;
}

std::vector<float> RandomLogits(int32_t vocabulary, double deviation, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, deviation);
  std::vector<float> logits(vocabulary);
  for (float& logit : logits) logit = static_cast<float>(normal(random));
  return logits;
}

}  // namespace marcoro
