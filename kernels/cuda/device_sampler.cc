#include "kernels/cuda/device_sampler.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "kernels/check.h"
#include "kernels/cuda/ops.h"

namespace marcoro::cuda {
namespace {

// Numbers in the lists of a sequence, counts aside: more are not worth a place on the device.
constexpr size_t kMostListed = size_t{1} << 16;

bool HasPenalties(const TokenRules& rules) {
  return rules.repetition_penalty != 1 || rules.presence_penalty != 0 ||
         rules.frequency_penalty != 0;
}

// Biases are added by many threads at once: of one token, in no order.
bool AreDistinctAndFinite(absl::Span<const std::pair<int32_t, float>> biases) {
  std::set<int32_t> tokens;
  for (const auto& [token, bias] : biases) {
    if (!std::isfinite(bias) || !tokens.insert(token).second) return false;
  }
  return true;
}

size_t TailCapacity(const TokenRules& rules) {
  size_t longest = 1;
  for (const auto& word : rules.bad_words) longest = std::max(longest, word.size());
  return longest - 1;
}

size_t AllowedWords(const TokenRules& rules, int64_t vocabulary) {
  return rules.allowed_tokens.empty() ? 0 : static_cast<size_t>((vocabulary + 31) / 32);
}

// Numbers (32 bits) of what a sequence's state points to, counts aside.
size_t Listed(const TokenRules& rules) {
  size_t numbers = 2 * rules.logit_bias.size() + rules.end_tokens.size() + TailCapacity(rules);
  for (const auto& word : rules.bad_words) numbers += word.size() + 1;
  return numbers;
}

// Lays arrays of 32-bit numbers side by side in pinned memory, and tells where each will be on the
// device.
class ListWriter {
 public:
  ListWriter(void* host, void* device)
      : host_(static_cast<char*>(host)), device_(static_cast<char*>(device)) {}

  template <typename T>
  struct Array {
    T* host;
    T* device;
  };
  // Zeros.
  template <typename T>
  Array<T> Take(size_t count) {
    const Array<T> array = {reinterpret_cast<T*>(host_ + used_),
                            reinterpret_cast<T*>(device_ + used_)};
    std::fill_n(array.host, count, T());
    used_ += count * sizeof(T);
    return array;
  }
  size_t used() const { return used_; }

 private:
  char* host_;
  char* device_;
  size_t used_ = 0;
};

void WriteBadWords(const TokenRules& rules, ListWriter& writer, SampledSequence& state) {
  size_t tokens = 0;
  for (const auto& word : rules.bad_words) {
    tokens += word.size();
    state.bad_word_count += word.empty() ? 0 : 1;
  }
  const auto words = writer.Take<int32_t>(tokens);
  const auto ends = writer.Take<int32_t>(static_cast<size_t>(state.bad_word_count));
  int32_t* next = words.host;
  int32_t* next_end = ends.host;
  for (const auto& word : rules.bad_words) {
    if (word.empty()) continue;
    next = std::copy(word.begin(), word.end(), next);
    *next_end++ = static_cast<int32_t>(next - words.host);
  }
  state.bad_words = words.device;
  state.bad_word_ends = ends.device;
}

void WriteTail(const TokenRules& rules, absl::Span<const int32_t> prompt,
               absl::Span<const int32_t> generated, ListWriter& writer, SampledSequence& state) {
  const size_t capacity = TailCapacity(rules);
  const size_t of_generated = std::min(generated.size(), capacity);
  const size_t of_prompt = std::min(prompt.size(), capacity - of_generated);
  const auto tail = writer.Take<int32_t>(capacity);
  const absl::Span<const int32_t> first = prompt.last(of_prompt);
  const absl::Span<const int32_t> second = generated.last(of_generated);
  std::copy(second.begin(), second.end(), std::copy(first.begin(), first.end(), tail.host));
  state.tail_capacity = static_cast<int32_t>(capacity);
  state.tail_length = static_cast<int32_t>(of_prompt + of_generated);
  state.tail = tail.device;
}

void WriteCounts(absl::Span<const int32_t> prompt, absl::Span<const int32_t> generated,
                 int64_t vocabulary, ListWriter& writer, SampledSequence& state) {
  const auto counts = writer.Take<uint32_t>(static_cast<size_t>(vocabulary));
  const auto is_known = [vocabulary](int32_t token) { return token >= 0 && token < vocabulary; };
  for (const int32_t token : prompt) {
    if (is_known(token)) counts.host[token] |= kInPrompt;
  }
  for (const int32_t token : generated) {
    if (is_known(token)) ++counts.host[token];
  }
  state.counts = counts.device;
}

SampledSequence StateOf(const TokenRules& rules) {
  return {.seed = rules.seed,
          .temperature = rules.temperature,
          .top_k = rules.top_k,
          .top_p = rules.top_p,
          .min_p = rules.min_p,
          .typical_p = rules.typical_p,
          .repetition_penalty = rules.repetition_penalty,
          .presence_penalty = rules.presence_penalty,
          .frequency_penalty = rules.frequency_penalty,
          .min_tokens = rules.min_tokens,
          .logprobs = rules.logprobs};
}

// The state of a sequence, and what it points to.
SampledSequence Write(const TokenRules& rules, absl::Span<const int32_t> prompt,
                      absl::Span<const int32_t> generated, int64_t vocabulary, ListWriter& writer) {
  SampledSequence state = StateOf(rules);
  state.generated = static_cast<int32_t>(generated.size());
  state.bias_count = static_cast<int32_t>(rules.logit_bias.size());
  const auto biases = writer.Take<TokenBias>(rules.logit_bias.size());
  std::transform(rules.logit_bias.begin(), rules.logit_bias.end(), biases.host,
                 [](const auto& bias) { return TokenBias{bias.first, bias.second}; });
  state.biases = biases.device;
  if (const size_t words = AllowedWords(rules, vocabulary); words > 0) {
    const auto allowed = writer.Take<uint32_t>(words);
    for (const int32_t token : rules.allowed_tokens) {
      if (token >= 0 && token < vocabulary) allowed.host[token / 32] |= 1u << token % 32;
    }
    state.allowed = allowed.device;
  }
  const auto end_tokens = writer.Take<int32_t>(rules.end_tokens.size());
  std::copy(rules.end_tokens.begin(), rules.end_tokens.end(), end_tokens.host);
  state.end_tokens = end_tokens.device;
  state.end_token_count = static_cast<int32_t>(rules.end_tokens.size());
  WriteBadWords(rules, writer, state);
  WriteTail(rules, prompt, generated, writer, state);
  if (HasPenalties(rules)) WriteCounts(prompt, generated, vocabulary, writer, state);
  return state;
}

size_t ScratchBytes(const TokenSamplerLimits& limits) {
  return std::max(SampleScratchBytes(limits.rows, limits.vocabulary),
                  SummarizeLogitsScratchBytes(limits.rows, limits.vocabulary));
}

template <typename T>
size_t BytesOf(int32_t count) {
  return static_cast<size_t>(count) * sizeof(T);
}

}  // namespace

size_t DeviceSampler::Bytes(const TokenSamplerLimits& limits) {
  return BytesOf<SampledSequence>(limits.slots) + BytesOf<LateId>(limits.slots) +
         BytesOf<int32_t>(limits.rows) + BytesOf<LogitSummary>(limits.rows) +
         BytesOf<SampledToken>(limits.rows) + ScratchBytes(limits);
}

absl::StatusOr<std::unique_ptr<DeviceSampler>> DeviceSampler::Create(
    Stream stream, const TokenSamplerLimits& limits, std::function<absl::Status()> failure) {
  MARCORO_CHECK(limits.slots >= 1 && limits.rows >= 1);
  MARCORO_CHECK(limits.vocabulary >= 1 && limits.vocabulary <= kMostTokensToSample);
  auto sampler =
      std::unique_ptr<DeviceSampler>(new DeviceSampler(stream, limits, std::move(failure)));
  absl::Status status = sampler->MakeEvents();
  if (status.ok()) status = sampler->Allocate();
  if (!status.ok()) return status;
  for (int32_t slot = limits.slots - 1; slot >= 0; --slot) sampler->free_.push_back(slot);
  return sampler;
}

absl::Status DeviceSampler::MakeEvents() {
  std::vector<Event*> wanted;
  for (Slot& slot : slots_) wanted.push_back(&slot.opened);
  for (Step& step : steps_) wanted.push_back(&step.done);
  for (Event* event : wanted) {
    auto made = CreateEvent();
    if (!made.ok()) return made.status();
    events_.push_back(*made);
    *event = *made;
  }
  return absl::OkStatus();
}

absl::Status DeviceSampler::Allocate() {
  const std::pair<GrowingMemory*, size_t> wanted[] = {
      {&states_, BytesOf<SampledSequence>(limits_.slots)},
      {&staged_states_, BytesOf<SampledSequence>(limits_.slots)},
      {&row_slots_, BytesOf<int32_t>(limits_.rows)},
      {&summaries_, BytesOf<LogitSummary>(limits_.rows)},
      {&tokens_, BytesOf<SampledToken>(limits_.rows)},
      {&scratch_, ScratchBytes(limits_)}};
  for (const auto& [memory, bytes] : wanted) {
    if (absl::Status status = memory->Reserve(stream_, bytes); !status.ok()) return status;
  }
  for (Step& step : steps_) {
    absl::Status status = step.slots.Reserve(stream_, BytesOf<int32_t>(limits_.rows));
    if (status.ok()) status = step.tokens.Reserve(stream_, BytesOf<SampledToken>(limits_.rows));
    if (!status.ok()) return status;
  }
  auto late_ids = LateIds::Create(stream_, static_cast<size_t>(limits_.slots),
                                  static_cast<const SampledSequence*>(states_.data()));
  if (!late_ids.ok()) return late_ids.status();
  late_ids_ = *std::move(late_ids);
  return absl::OkStatus();
}

DeviceSampler::~DeviceSampler() {
  Synchronize(stream_).IgnoreError();  // what is under way uses the memory
  for (const Event event : events_) DestroyEvent(event);
}

absl::StatusOr<int32_t> DeviceSampler::Open(const TokenRules& rules,
                                            absl::Span<const int32_t> prompt,
                                            absl::Span<const int32_t> generated) {
  if (rules.logprobs > kMostAlternatives || !AreDistinctAndFinite(rules.logit_bias) ||
      Listed(rules) > kMostListed) {
    return absl::UnimplementedError("not by the device's sampler");
  }
  if (free_.empty()) return absl::ResourceExhaustedError("all slots are taken");
  const int32_t index = free_.back();
  Slot& slot = slots_[index];
  const size_t counts = HasPenalties(rules) ? static_cast<size_t>(limits_.vocabulary) : 0;
  const size_t bytes =
      (Listed(rules) + AllowedWords(rules, limits_.vocabulary) + counts) * sizeof(uint32_t);
  // The staged memory of an earlier sequence in this slot.
  absl::Status status = WaitForEvent(slot.opened);
  if (status.ok()) status = slot.lists.Reserve(stream_, bytes);
  if (status.ok()) status = slot.staged_lists.Reserve(stream_, bytes);
  if (!status.ok()) return status;

  ListWriter writer(slot.staged_lists.data(), slot.lists.data());
  SampledSequence* staged = static_cast<SampledSequence*>(staged_states_.data()) + index;
  *staged = Write(rules, prompt, generated, limits_.vocabulary, writer);
  MARCORO_CHECK(writer.used() <= bytes);
  if (writer.used() > 0) {
    CopyToDevice(stream_, slot.lists.data(), slot.staged_lists.data(), writer.used());
  }
  CopyToDevice(stream_, static_cast<SampledSequence*>(states_.data()) + index, staged,
               sizeof(SampledSequence));
  MarkEvent(stream_, slot.opened);
  slot.is_open = true;
  free_.pop_back();
  return index;
}

void DeviceSampler::Close(int32_t slot) {
  MARCORO_CHECK(slot >= 0 && slot < limits_.slots && slots_[slot].is_open);
  slots_[slot].is_open = false;
  free_.push_back(slot);
}

void DeviceSampler::Queue(const Tensor& logits, absl::Span<const int32_t> slots) {
  MARCORO_CHECK(queued_ - taken_ < kMostQueued);
  MARCORO_CHECK(logits.dtype == DType::kF32 && logits.columns == limits_.vocabulary);
  MARCORO_CHECK(logits.rows >= 1 && logits.rows <= limits_.rows);
  MARCORO_CHECK(slots.size() == static_cast<size_t>(logits.rows));
  for (const int32_t slot : slots) {
    MARCORO_CHECK(slot == -1 || (slot >= 0 && slot < limits_.slots && slots_[slot].is_open));
  }
  // Free: it was taken kMostQueued steps ago.
  Step& step = steps_[queued_ % kMostQueued];
  ++queued_;
  step.rows = slots.size();
  std::copy(slots.begin(), slots.end(), static_cast<int32_t*>(step.slots.data()));
  auto* row_slots = static_cast<int32_t*>(row_slots_.data());
  auto* summaries = static_cast<LogitSummary*>(summaries_.data());
  auto* tokens = static_cast<SampledToken*>(tokens_.data());
  CopyToDevice(stream_, row_slots, step.slots.data(), step.rows * sizeof(int32_t));
  SummarizeLogits(stream_, logits, summaries, scratch_.data());
  Sample(stream_, logits, summaries, row_slots, static_cast<SampledSequence*>(states_.data()),
         tokens, scratch_.data());
  CopyToHost(stream_, step.tokens.data(), tokens, step.rows * sizeof(SampledToken));
  MarkEvent(stream_, step.done);
}

void DeviceSampler::SupplyIds(absl::Span<const LateId> late) {
  for (const LateId& id : late) {
    MARCORO_CHECK(id.slot >= 0 && id.slot < limits_.slots && slots_[id.slot].is_open);
  }
  late_ids_->Supply(late);
}

absl::StatusOr<absl::Span<const TokenChoice>> DeviceSampler::Take() {
  MARCORO_CHECK(taken_ < queued_);
  const Step& step = steps_[taken_ % kMostQueued];
  ++taken_;
  absl::Status status = WaitForEvent(step.done);
  if (status.ok()) status = failure_();
  if (!status.ok()) return status;
  choices_.clear();
  const auto* tokens = static_cast<const SampledToken*>(step.tokens.data());
  for (const SampledToken& token : absl::MakeConstSpan(tokens, step.rows)) {
    const auto alternatives = absl::MakeConstSpan(token.alternatives);
    choices_.push_back({.status = token.status,
                        .token = token.token,
                        .logprob = token.logprob,
                        .alternatives = alternatives.first(token.alternative_count)});
  }
  return absl::MakeConstSpan(choices_);
}

}  // namespace marcoro::cuda
