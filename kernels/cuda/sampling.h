// Choosing tokens on the device: the tokens that the worker's SequenceSampler chooses for the same
// logits, parameters and seed, and the same log-probabilities.
//
// What decides is done in whole numbers or, where in floating point, in the same operations in the
// same order (weights of tokens, the mean that typical_p takes), so that the two agree bit for bit
// without depending on each other's mathematical library.
//
// All pointers are to device memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/tensor.h"
#include "kernels/token_sampler.h"

namespace marcoro::cuda {

inline constexpr int kMostAlternatives = 20;
inline constexpr int64_t kMostTokensToSample = int64_t{1} << 20;  // the largest vocabulary

// In a count of a token: the prompt has it.
inline constexpr uint32_t kInPrompt = 0x80000000u;

struct TokenBias {
  int32_t token = 0;
  float bias = 0;  // finite
};

// A sequence: how its tokens are chosen, and what is remembered of them. Sample keeps the last part
// up to date by itself, so that the next step need not wait for the host to see this one's token.
struct SampledSequence {
  // As in TokenRules.
  uint64_t seed = 0;
  float temperature = 1;  // 0: greedy
  int32_t top_k = 0;      // 0: off
  float top_p = 1;        // 1: off
  float min_p = 0;        // 0: off
  float typical_p = 1;    // 1: off
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  int32_t min_tokens = 0;
  int32_t logprobs = -1;              // at most kMostAlternatives
  const TokenBias* biases = nullptr;  // of distinct tokens
  int32_t bias_count = 0;
  const uint32_t* allowed = nullptr;  // a bit for each token, lowest first; null: all
  const int32_t* end_tokens = nullptr;
  int32_t end_token_count = 0;
  const int32_t* bad_words = nullptr;  // one after the other; none is empty
  const int32_t* bad_word_ends = nullptr;
  int32_t bad_word_count = 0;
  int32_t tail_capacity = 0;  // tokens of the longest bad word, its last one aside

  int32_t last_token = -1;  // that was chosen; -1: none
  // How many tokens have been generated: the next draw's position.
  int32_t generated = 0;
  // The last tokens of prompt and generated, newest last, at most tail_capacity.
  int32_t tail_length = 0;
  int32_t* tail = nullptr;
  // (V) how often each token was generated, and kInPrompt. Null: there are no penalties.
  uint32_t* counts = nullptr;
};

struct SampledToken {
  SamplingStatus status = SamplingStatus::kOk;
  int32_t token = -1;  // the others are meaningless unless the status is kOk
  float logprob = 0;   // if asked for, as are the alternatives, best first
  int32_t alternative_count = 0;
  RankedToken alternatives[kMostAlternatives];
};

// Row r of logits (R, V) F32 is of sequences[slots[r]]; slot -1 is padding: nothing happens. No
// slot comes twice. `summaries` (R) are the logits' (SummarizeLogits). `scratch` has
// SampleScratchBytes of the most rows. On a failure the sequence stays as it was.
size_t SampleScratchBytes(int64_t rows, int64_t vocabulary);
void Sample(Stream stream, const Tensor& logits, const LogitSummary* summaries,
            const int32_t* slots, SampledSequence* sequences, SampledToken* out, void* scratch);

}  // namespace marcoro::cuda
