// How the fake worker "generates": one sequence, step by step.
#pragma once

#include <cstdint>

#include "marcoro/worker/v1/worker.pb.h"
#include "tests/coordinator/routing/fake_worker.h"

namespace marcoro {

// The chain of hashes behind the tokens: each depends on the seed, the prompt and all tokens before
// it.
class TokenChain {
 public:
  TokenChain(const worker::v1::Submit& submit, uint32_t vocabulary_size);
  uint32_t Next();

 private:
  void Take(uint32_t token);

  const uint32_t vocabulary_size_;
  uint64_t hash_;
};

// How a sequence ends with its newest token, of `generated` in all.
worker::v1::SequenceEnd EndAfter(const worker::v1::Submit& submit, uint32_t token,
                                 uint32_t generated);

class FakeSequence {
 public:
  FakeSequence(worker::v1::Submit submit, uint32_t vocabulary_size);

  uint64_t id() const { return submit_.sequence_id(); }
  // The next step's update: some prompt log-probabilities, a token, or an end.
  void Advance(const FakeWorkerOptions& options, worker::v1::SequenceUpdate& update);

 private:
  void GivePromptLogprobs(int count, worker::v1::SequenceUpdate& update);
  void GiveToken(worker::v1::SequenceUpdate& update);

  const worker::v1::Submit submit_;
  TokenChain chain_;
  uint32_t generated_;
  int prompt_logprobs_given_ = 0;
  bool started_ = false;
};

}  // namespace marcoro
