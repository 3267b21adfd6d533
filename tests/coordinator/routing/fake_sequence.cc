#include "tests/coordinator/routing/fake_sequence.h"

#include <algorithm>
#include <utility>

namespace marcoro {
namespace {

using worker::v1::SequenceUpdate;
using worker::v1::Submit;

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

TokenChain::TokenChain(const Submit& submit, uint32_t vocabulary_size)
    : vocabulary_size_(vocabulary_size), hash_(Mix(submit.sampling().seed() + 1)) {
  for (const uint32_t id : submit.prompt_ids()) hash_ = Mix(hash_ ^ (id + 1));
  for (const uint32_t id : submit.generated_ids()) Take(id);
}

uint32_t TokenChain::Next() {
  const uint32_t token = static_cast<uint32_t>(Mix(hash_ + 0x9e37) % vocabulary_size_);
  Take(token);
  return token;
}

void TokenChain::Take(uint32_t token) { hash_ = Mix(hash_ * 3 + token + 1); }

worker::v1::SequenceEnd EndAfter(const Submit& submit, uint32_t token, uint32_t generated) {
  const auto& stops = submit.stop_token_ids();
  if (generated >= submit.min_tokens() &&
      std::find(stops.begin(), stops.end(), token) != stops.end()) {
    return worker::v1::SEQUENCE_END_STOP_TOKEN;
  }
  return generated >= submit.max_tokens() ? worker::v1::SEQUENCE_END_LENGTH
                                          : worker::v1::SEQUENCE_END_UNSPECIFIED;
}

FakeSequence::FakeSequence(Submit submit, uint32_t vocabulary_size)
    : submit_(std::move(submit)),
      chain_(submit_, vocabulary_size),
      generated_(static_cast<uint32_t>(submit_.generated_ids_size())) {}

void FakeSequence::Advance(const FakeWorkerOptions& options, SequenceUpdate& update) {
  update.set_sequence_id(id());
  if (!started_) {
    started_ = true;
    update.set_queue_microseconds(FakeWorker::kQueueMicroseconds);
    update.set_cached_tokens(FakeWorker::kCachedTokens);
  }
  const int prompt_size = submit_.prompt_ids_size();
  if (submit_.has_prompt_logprobs() && prompt_logprobs_given_ < prompt_size) {
    GivePromptLogprobs(options.prompt_logprobs_per_step, update);
    if (prompt_logprobs_given_ == prompt_size && submit_.max_tokens() == 0) {
      update.set_end(worker::v1::SEQUENCE_END_LENGTH);
    }
  } else if (generated_ >= submit_.max_tokens()) {
    update.set_end(worker::v1::SEQUENCE_END_LENGTH);
  } else {
    GiveToken(update);
    if (options.end_separately && update.end() == worker::v1::SEQUENCE_END_LENGTH) {
      update.clear_end();
    }
  }
}

void FakeSequence::GivePromptLogprobs(int count, SequenceUpdate& update) {
  const int size = submit_.prompt_ids_size();
  for (int i = 0; i < count && prompt_logprobs_given_ < size; ++i) {
    worker::v1::TokenLogprobs* entry = update.add_prompt_logprobs();
    const int position = prompt_logprobs_given_++;
    if (position > 0) entry->set_logprob(FakeWorker::PromptLogprob(submit_, position));
  }
}

void FakeSequence::GiveToken(SequenceUpdate& update) {
  const uint32_t token = chain_.Next();
  ++generated_;
  update.add_token_ids(token);
  if (submit_.has_logprobs()) update.add_logprobs()->set_logprob(FakeWorker::Logprob(token));
  update.set_end(EndAfter(submit_, token, generated_));
}

}  // namespace marcoro
