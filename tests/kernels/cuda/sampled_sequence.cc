#include "tests/kernels/cuda/sampled_sequence.h"

#include <algorithm>

namespace marcoro::cuda {
namespace {

template <typename T>
DeviceArray<T> ToDevice(const std::vector<T>& values) {
  return DeviceArray<T>(absl::MakeConstSpan(values));
}

std::vector<TokenBias> Biases(const SamplingParams& params) {
  std::vector<TokenBias> biases;
  for (const auto& [token, bias] : params.logit_bias) biases.push_back({token, bias});
  return biases;
}

std::vector<uint32_t> AllowedBits(const SamplingParams& params, int32_t vocabulary) {
  std::vector<uint32_t> bits(static_cast<size_t>((vocabulary + 31) / 32));
  for (const TokenId token : params.allowed_token_ids) {
    if (token >= 0 && token < vocabulary) bits[token / 32] |= 1u << token % 32;
  }
  return bits;
}

std::vector<int32_t> Joined(const std::vector<std::vector<TokenId>>& words) {
  std::vector<int32_t> tokens;
  for (const auto& word : words) tokens.insert(tokens.end(), word.begin(), word.end());
  return tokens;
}

std::vector<int32_t> Ends(const std::vector<std::vector<TokenId>>& words) {
  std::vector<int32_t> ends;
  int32_t end = 0;
  for (const auto& word : words) ends.push_back(end += static_cast<int32_t>(word.size()));
  return ends;
}

int32_t TailCapacity(const SamplingParams& params) {
  size_t longest = 1;
  for (const auto& word : params.bad_words) longest = std::max(longest, word.size());
  return static_cast<int32_t>(longest - 1);
}

// The last tokens of prompt and generated.
std::vector<int32_t> TailOf(const std::vector<TokenId>& prompt,
                            const std::vector<TokenId>& generated, int32_t capacity) {
  std::vector<int32_t> all = prompt;
  all.insert(all.end(), generated.begin(), generated.end());
  const size_t length = std::min(all.size(), static_cast<size_t>(capacity));
  return {all.end() - static_cast<std::ptrdiff_t>(length), all.end()};
}

std::vector<uint32_t> CountsOf(const std::vector<TokenId>& prompt,
                               const std::vector<TokenId>& generated, int32_t vocabulary) {
  std::vector<uint32_t> counts(static_cast<size_t>(vocabulary));
  for (const TokenId token : prompt) counts[token] |= kInPrompt;
  for (const TokenId token : generated) ++counts[token];
  return counts;
}

bool HasPenalties(const SamplingParams& params) {
  return params.repetition_penalty != 1 || params.presence_penalty != 0 ||
         params.frequency_penalty != 0;
}

}  // namespace

TestSequence::TestSequence(const SamplingParams& params, const std::vector<TokenId>& prompt,
                           const std::vector<TokenId>& generated, int32_t vocabulary)
    : host_(params, prompt, generated),
      generated_(static_cast<int32_t>(generated.size())),
      tail_length_(0),
      has_counts_(HasPenalties(params)),
      biases_(ToDevice(Biases(params))),
      allowed_(ToDevice(AllowedBits(params, vocabulary))),
      end_tokens_(ToDevice(params.end_token_ids)),
      bad_words_(ToDevice(Joined(params.bad_words))),
      bad_word_ends_(ToDevice(Ends(params.bad_words))),
      counts_(ToDevice(CountsOf(prompt, generated, vocabulary))),
      tail_(static_cast<size_t>(TailCapacity(params))) {
  const std::vector<int32_t> tail = TailOf(prompt, generated, TailCapacity(params));
  tail_.CopyFrom(tail);
  tail_length_ = static_cast<int32_t>(tail.size());
}

SampledSequence TestSequence::device() const {
  const SamplingParams& params = host_.params();
  return {.seed = params.seed,
          .temperature = params.temperature,
          .top_k = params.top_k,
          .top_p = params.top_p,
          .min_p = params.min_p,
          .typical_p = params.typical_p,
          .repetition_penalty = params.repetition_penalty,
          .presence_penalty = params.presence_penalty,
          .frequency_penalty = params.frequency_penalty,
          .min_tokens = params.min_tokens,
          .logprobs = params.logprobs,
          .biases = biases_.data(),
          .bias_count = static_cast<int32_t>(biases_.size()),
          .allowed = params.allowed_token_ids.empty() ? nullptr : allowed_.data(),
          .end_tokens = end_tokens_.data(),
          .end_token_count = static_cast<int32_t>(end_tokens_.size()),
          .bad_words = bad_words_.data(),
          .bad_word_ends = bad_word_ends_.data(),
          .bad_word_count = static_cast<int32_t>(bad_word_ends_.size()),
          .tail_capacity = static_cast<int32_t>(tail_.size()),
          .generated = generated_,
          .tail_length = tail_length_,
          .tail = tail_.data(),
          .counts = has_counts_ ? counts_.data() : nullptr};
}

}  // namespace marcoro::cuda
