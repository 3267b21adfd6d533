// Penalties, biases and forbidden tokens of a row, as the worker's LogitAdjustments and
// TokenConstraints have them. For sampling.cu.
#pragma once

#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_weights.h"

namespace marcoro::cuda {

MARCORO_DEVICE bool HasAdjustments(const SampledSequence& sequence) {
  return sequence.counts != nullptr || sequence.bias_count > 0 || sequence.allowed != nullptr ||
         sequence.bad_word_count > 0 ||
         (sequence.generated < sequence.min_tokens && sequence.end_token_count > 0);
}

// The logit of a token after penalties.
MARCORO_DEVICE float Penalized(const SampledSequence& sequence, uint32_t count, float logit) {
  if (count == 0) return logit;
  logit = logit > 0 ? Divide(logit, sequence.repetition_penalty)
                    : Multiply(logit, sequence.repetition_penalty);
  const uint32_t generated = count & ~kInPrompt;
  if (generated == 0) return logit;
  return Subtract(logit, Add(Multiply(sequence.frequency_penalty, static_cast<float>(generated)),
                             sequence.presence_penalty));
}

MARCORO_DEVICE void Forbid(int token, float* logits, int columns) {
  if (token >= 0 && token < columns) logits[token] = NegativeInfinity();
}

// Whether the sequence ends with all tokens of a word but its last.
MARCORO_DEVICE bool EndsWith(const SampledSequence& sequence, int begin, int end) {
  const int length = end - begin - 1;
  if (length > sequence.tail_length) return false;
  const int32_t* tail = sequence.tail + sequence.tail_length - length;
  for (int i = 0; i < length; ++i) {
    if (tail[i] != sequence.bad_words[begin + i]) return false;
  }
  return true;
}

MARCORO_DEVICE void ForbidTokens(const SampledSequence& sequence, float* logits, int columns) {
  if (sequence.generated < sequence.min_tokens) {
    for (int i = ThreadIndex(); i < sequence.end_token_count; i += BlockThreads()) {
      Forbid(sequence.end_tokens[i], logits, columns);
    }
  }
  for (int i = ThreadIndex(); i < sequence.bad_word_count; i += BlockThreads()) {
    const int begin = i == 0 ? 0 : sequence.bad_word_ends[i - 1];
    const int end = sequence.bad_word_ends[i];
    if (EndsWith(sequence, begin, end)) Forbid(sequence.bad_words[end - 1], logits, columns);
  }
}

// Writes the row with penalties, biases and constraints to `adjusted`.
MARCORO_DEVICE void AdjustLogits(const LogitRow& row, const SampledSequence& sequence,
                                 float* adjusted) {
  ForEachLogit(row, [&](int id, float logit) {
    if (sequence.counts != nullptr) logit = Penalized(sequence, sequence.counts[id], logit);
    const bool is_allowed =
        sequence.allowed == nullptr || (sequence.allowed[id / 32] >> id % 32 & 1u) != 0;
    adjusted[id] = is_allowed ? logit : NegativeInfinity();
  });
  SyncBlock();
  for (int i = ThreadIndex(); i < sequence.bias_count; i += BlockThreads()) {
    const TokenBias bias = sequence.biases[i];
    if (bias.token >= 0 && bias.token < row.columns) {
      adjusted[bias.token] = Add(adjusted[bias.token], bias.bias);
    }
  }
  SyncBlock();
  ForbidTokens(sequence, adjusted, row.columns);
  SyncBlock();
}

}  // namespace marcoro::cuda
