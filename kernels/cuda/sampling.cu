// A block takes a row. It never sorts: filters are thresholds, found by histograms
// (sampling_selection.h), and a token's weight is computed anew in every pass over the row, which
// stays in the second-level cache. Sums of weights are whole numbers: which thread adds what does
// not matter.
//
// One multiprocessor reads 32000 logits (128 KB) in some 1.5 microseconds; a pass that weighs all
// of them (45 instructions each) takes about 6, one that looks at distances only, or at what few a
// filter has left, about 2. top_k, top_p and typical_p take two passes each (the first of those two
// weighs, unless top_k came before), the draw one, alternatives three, adjustments two. Greedy rows
// without adjustments take none. Rows run side by side on the multiprocessors. The one slow thing
// is the mean of typical_p, which is a sum of doubles in a fixed order: 8 chains of V / 8
// additions, some 30 microseconds at 32000.
#include "kernels/check.h"
#include "kernels/cuda/device/doubles.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_adjustments.h"
#include "kernels/cuda/sampling_selection.h"
#include "kernels/cuda/sampling_weights.h"

namespace marcoro::cuda {
namespace {

// Vocabularies of tests and small models need no larger blocks.
constexpr int kFewTokens = 8192;
constexpr int kFewThreads = 128;
constexpr float kLargestFloat = 3.40282347e38f;

struct SamplingRows {
  const float* logits;
  int64_t stride;
  int columns;
  bool aligned;
  const LogitSummary* summaries;
  const int32_t* slots;
  SampledSequence* sequences;
  SampledToken* out;
  float* adjusted;  // (R, adjusted_stride), aligned to 16 bytes
  int64_t adjusted_stride;
};

// The largest logit of a row, and what it says of the row.
struct BestToken {
  int id;
  float logit;
  SamplingStatus status;
};

MARCORO_DEVICE bool IsFinite(float value) {
  return (FloatToBits(value) & 0x7f800000u) != 0x7f800000u;
}

MARCORO_DEVICE BestToken FindBest(const BlockMemory& memory, const LogitRow& row) {
  Rank best = kLastRank;
  ForEachLogit(row,
               [&](int id, float logit) { best = Smaller(best, RankOf(KeyOfLogit(logit), id)); });
  const int id = static_cast<int>(MinOverBlock64(memory, best) & 0xffffffffu);
  const float logit = row.logits[id];
  if (logit == NegativeInfinity()) return {id, logit, SamplingStatus::kNothingIsAllowed};
  return {id, logit,
          IsFinite(logit) ? SamplingStatus::kOk : SamplingStatus::kAdjustmentsAreInfinite};
}

// Each token above -infinity once, by its logit. `last`: those beyond it take no part.
struct CountedTokens {
  float max;
  Rank last = kLastRank;

  MARCORO_DEVICE Measured Measure(float logit) const {
    return {Subtract(max, logit), KeyOfLogit(logit)};
  }
  MARCORO_DEVICE uint32_t Weight(int id, float logit) const {
    return logit > NegativeInfinity() && RankOf(KeyOfLogit(logit), id) <= last ? 1 : 0;
  }
};

// The rank of the last of the `count` tokens of the largest logits; kLastRank if there are no more
// above -infinity.
MARCORO_DEVICE Rank LastOfTop(const BlockMemory& memory, const LogitRow& row, float max,
                              int count) {
  return SelectByWeight(memory, row, CountedTokens{max}, [&](uint64_t total) {
    return total > static_cast<uint64_t>(count) ? static_cast<uint64_t>(count - 1) : total;
  });
}

// Those that are kept, by their distance from the likeliest, or from the mean.
template <bool kTypical>
struct NearTokens {
  const KeptTokens& kept;

  MARCORO_DEVICE Measured Measure(float logit) const {
    const float exponent = ExponentOf(kept, logit);
    const float distance = kTypical ? TypicalDistance(kept, exponent) : -exponent;
    return {distance, KeyOfDistance(distance)};
  }
  MARCORO_DEVICE uint32_t Weight(int id, float logit) const {
    return Weigh(kept, id, logit).weight;
  }
};

// The rank, by distance, of the last token that it takes to reach the fraction p of all weights.
template <bool kTypical>
MARCORO_DEVICE Rank LastNearest(const BlockMemory& memory, const LogitRow& row,
                                const KeptTokens& kept, float p) {
  return SelectByWeight(memory, row, NearTokens<kTypical>{kept}, [&](uint64_t total) {
    const double share = MultiplyDouble(static_cast<double>(p), static_cast<double>(total));
    const auto wanted = static_cast<uint64_t>(CeilDouble(share));
    return (wanted < 1 ? 1 : Smaller(wanted, total)) - 1;
  });
}

// A tile's entries among all entries of the row.
struct TilePlace {
  int phase;  // entries before the tile, modulo 8
  int count;  // of the tile
  int mine;   // entries of the tile before this thread's
};

// By ids that rise with the threads.
MARCORO_DEVICE TilePlace PlaceInTile(const BlockMemory& memory, bool is_entry, int phase) {
  const uint32_t entries = Ballot(is_entry);
  const uint32_t before_me = entries & ((1u << Lane()) - 1);
  ShareWarpValues(memory, static_cast<uint64_t>(CountOnes(entries)));
  int count = 0;
  int mine = 0;
  for (int w = 0; w < BlockThreads() / kWarpThreads; ++w) {
    if (w == Warp()) mine = count + CountOnes(before_me);
    count += static_cast<int>(memory.warp_values.Load(w));
  }
  return {phase, count, mine};
}

// Σ weight · exponent / Σ weight in the order of the worker's distribution: entry e belongs to sum
// e % 8, the eight sums are added up last. A tile of one token for each thread is laid out in lines
// of 8, zeros (which change no sum) before and behind; thread s adds column s.
MARCORO_DEVICE float MeanExponent(const BlockMemory& memory, const LogitRow& row,
                                  const KeptTokens& kept) {
  constexpr int kSums = 8;
  double sum = 0;
  uint64_t weights = 0;
  int phase = 0;
  MARCORO_ROLLED_LOOP
  for (int tile = 0; tile < row.columns; tile += BlockThreads()) {
    const int id = tile + ThreadIndex();
    const float logit = id < row.columns ? row.logits[id] : NegativeInfinity();
    const bool is_entry = id < row.columns && IsEntry(kept, id, logit);
    const TilePlace place = PlaceInTile(memory, is_entry, phase);
    const int end = place.phase + place.count;
    const int lines = (end + kSums - 1) / kSums;
    if (is_entry) {
      const WeighedToken token = Weigh(kept, id, logit);
      const double term = token.weight == 0
                              ? 0.0
                              : MultiplyDouble(token.weight, static_cast<double>(token.exponent));
      memory.terms.Store(place.phase + place.mine, term);
      weights += token.weight;
    }
    if (ThreadIndex() < place.phase) memory.terms.Store(ThreadIndex(), 0.0);
    if (ThreadIndex() < lines * kSums - end) memory.terms.Store(end + ThreadIndex(), 0.0);
    SyncBlock();
    if (ThreadIndex() < kSums) {
      for (int line = 0; line < lines; ++line) {
        sum = AddDouble(sum, memory.terms.Load(line * kSums + ThreadIndex()));
      }
    }
    phase = end % kSums;
  }
  const uint64_t total = SumOverBlock64(memory, weights);
  if (ThreadIndex() < kSums) memory.terms.Store(ThreadIndex(), sum);
  SyncBlock();
  sum = 0;
  for (int i = 0; i < kSums; ++i) sum = AddDouble(sum, memory.terms.Load(i));
  return static_cast<float>(DivideDouble(sum, static_cast<double>(total)));
}

MARCORO_DEVICE KeptTokens Filter(const BlockMemory& memory, const LogitRow& row, float max,
                                 const SampledSequence& sequence) {
  const float factor = Divide(1.0f, sequence.temperature);
  KeptTokens kept;
  kept.max = max;
  kept.factor = IsFinite(factor) ? factor : kLargestFloat;
  if (sequence.top_k > 0 && sequence.top_k < row.columns) {
    kept.last_of_top_k = LastOfTop(memory, row, max, sequence.top_k);
  }
  if (sequence.top_p < 1) {
    kept.last_of_top_p = LastNearest<false>(memory, row, kept, sequence.top_p);
  }
  if (sequence.min_p > 0) {
    const double part = sequence.min_p < 1 ? static_cast<double>(sequence.min_p) : 1.0;
    kept.least_weight = static_cast<uint32_t>(CeilDouble(MultiplyDouble(part, kFullWeight)));
  }
  if (sequence.typical_p < 1) {
    kept.mean_exponent = MeanExponent(memory, row, kept);
    kept.last_of_typical = LastNearest<true>(memory, row, kept, sequence.typical_p);
  }
  return kept;
}

// Within the tokens [begin, end), by one warp: the one at which the sum of weights passes the
// target.
MARCORO_DEVICE int DrawOfWarp(const LogitRow& row, const KeptTokens& kept, int begin, int end,
                              uint64_t target) {
  constexpr int kStep = kWarpThreads * kVector;
  MARCORO_ROLLED_LOOP
  for (int base = begin; base < end; base += kStep) {
    const int first = base + Lane() * kVector;
    const Float4 logits = LoadFour(row.logits + first, end - first, row.aligned);
    uint32_t weights[kVector];
    uint64_t mine = 0;
    MARCORO_UNROLL_LOOP
    for (int e = 0; e < kVector; ++e) {
      weights[e] = first + e < end ? Weigh(kept, first + e, logits.value[e]).weight : 0;
      mine += weights[e];
    }
    const uint64_t up_to_me = SumUpToLane(mine);
    const uint32_t passed = Ballot(target < up_to_me);
    if (passed == 0) {
      target -= Shuffle(up_to_me, kWarpThreads - 1);
      continue;
    }
    uint64_t sum = up_to_me - mine;
    int token = first;
    MARCORO_UNROLL_LOOP
    for (int e = 0; e < kVector - 1; ++e) {
      sum += weights[e];
      if (sum <= target) token = first + e + 1;
    }
    return Shuffle(token, CountOnes(~passed));  // the first lane that passes
  }
  return -1;  // not while the target is below the sum
}

// The token at bits / 2^53 of the cumulative distribution by rising id. Each warp adds up a stretch
// of the row; the one in whose stretch the token lies looks closer.
MARCORO_DEVICE int Draw(const BlockMemory& memory, const LogitRow& row, const KeptTokens& kept,
                        uint64_t bits) {
  const int warps = BlockThreads() / kWarpThreads;
  const int step = warps * kWarpThreads * kVector;
  const int stretch = (row.columns + step - 1) / step * (step / warps);
  const int begin = Warp() * stretch;
  const int end = begin + stretch < row.columns ? begin + stretch : row.columns;
  uint64_t mine = 0;
  ForEachLogitOf(row, begin, end, Lane(), kWarpThreads,
                 [&](int id, float logit) { mine += Weigh(kept, id, logit).weight; });
  ShareWarpValues(memory, SumOverWarp64(mine));
  uint64_t total = 0;
  uint64_t before = 0;
  for (int w = 0; w < warps; ++w) {
    if (w == Warp()) before = total;
    total += memory.warp_values.Load(w);
  }
  const uint64_t target = PartOfTotal(bits, total);
  if (before <= target && target < before + memory.warp_values.Load(Warp())) {
    const int token = DrawOfWarp(row, kept, begin, end, target - before);
    if (Lane() == 0) memory.answer.Store(0, static_cast<uint64_t>(token));
  }
  SyncBlock();
  return static_cast<int>(memory.answer.Load(0));
}

// Of the model's own distribution.
MARCORO_DEVICE float LogprobOf(float logit, const LogitSummary& summary) {
  return static_cast<float>(AddDouble(static_cast<double>(logit), -summary.log_sum_exp));
}

// The likeliest tokens of the model's own distribution, best first.
MARCORO_DEVICE void FindAlternatives(const BlockMemory& memory, const LogitRow& row,
                                     const LogitSummary& summary, int count, SampledToken* out) {
  const Rank last = LastOfTop(memory, row, summary.max, count);
  const int found = CollectCandidates(memory, row, CountedTokens{summary.max, last}, TokenRange());
  MARCORO_ROLLED_LOOP
  for (int i = ThreadIndex(); i < found; i += BlockThreads()) {
    const Rank rank = memory.ranks.Load(i);
    const auto place = static_cast<int>(WeightBefore(memory, found, rank));
    const auto token = static_cast<int32_t>(rank & 0xffffffffu);
    out->alternatives[place] = {token, LogprobOf(row.logits[token], summary)};
  }
  if (ThreadIndex() == 0) out->alternative_count = found;
}

// The sequence goes on with the token. By one thread.
MARCORO_DEVICE void Append(int token, SampledSequence& sequence) {
  sequence.last_token = token;
  ++sequence.generated;
  if (sequence.counts != nullptr) ++sequence.counts[token];
  if (sequence.tail_capacity == 0) return;
  if (sequence.tail_length == sequence.tail_capacity) {
    for (int i = 1; i < sequence.tail_length; ++i) sequence.tail[i - 1] = sequence.tail[i];
    --sequence.tail_length;
  }
  sequence.tail[sequence.tail_length++] = token;
}

// What is chosen of a row of the given summary.
MARCORO_DEVICE BestToken Choose(const BlockMemory& memory, LogitRow row,
                                const LogitSummary& summary, const SampledSequence& sequence,
                                float* adjusted) {
  if (summary.has_nan) return {-1, 0, SamplingStatus::kLogitsAreNotNumbers};
  if (!IsFinite(summary.max)) return {-1, 0, SamplingStatus::kLargestIsNotFinite};
  BestToken best = {summary.best, summary.max, SamplingStatus::kOk};
  if (HasAdjustments(sequence)) {
    AdjustLogits(row, sequence, adjusted);
    row.logits = adjusted;
    row.aligned = true;
    best = FindBest(memory, row);
  }
  if (best.status != SamplingStatus::kOk || sequence.temperature == 0) return best;
  const KeptTokens kept = Filter(memory, row, best.logit, sequence);
  best.id = Draw(memory, row, kept,
                 RandomBits53(sequence.seed, static_cast<uint64_t>(sequence.generated)));
  return best;
}

MARCORO_KERNEL(kMostSamplingThreads, 2) SampleKernel(SamplingRows rows) {
  const int64_t r = BlockIndexX();
  const int slot = rows.slots[r];
  if (slot < 0) return;
  const BlockMemory memory;
  const LogitRow row = {rows.logits + r * rows.stride, rows.columns, rows.aligned};
  const LogitSummary& summary = rows.summaries[r];
  SampledSequence& sequence = rows.sequences[slot];
  SampledToken* out = rows.out + r;
  const BestToken chosen =
      Choose(memory, row, summary, sequence, rows.adjusted + r * rows.adjusted_stride);
  const bool is_chosen = chosen.status == SamplingStatus::kOk;
  if (ThreadIndex() == 0) {
    out->status = chosen.status;
    out->token = is_chosen ? chosen.id : -1;
    out->logprob = is_chosen ? LogprobOf(row.logits[chosen.id], summary) : 0;
    out->alternative_count = 0;
  }
  const int alternatives =
      sequence.logprobs < kMostAlternatives ? sequence.logprobs : kMostAlternatives;
  if (is_chosen && alternatives > 0) FindAlternatives(memory, row, summary, alternatives, out);
  SyncBlock();  // all have read what Append changes
  if (is_chosen && ThreadIndex() == 0) Append(chosen.id, sequence);
}

int64_t AdjustedStride(int64_t columns) { return (columns + kVector - 1) / kVector * kVector; }

}  // namespace

size_t SampleScratchBytes(int64_t rows, int64_t vocabulary) {
  return static_cast<size_t>(rows * AdjustedStride(vocabulary)) * sizeof(float);
}

void Sample(Stream stream, const Tensor& logits, const LogitSummary* summaries,
            const int32_t* slots, SampledSequence* sequences, SampledToken* out, void* scratch) {
  MARCORO_CHECK(logits.columns <= kMostTokensToSample);
  Launch(stream,
         {.grid_x = static_cast<int>(logits.rows),
          .threads = logits.columns <= kFewTokens ? kFewThreads : kMostSamplingThreads,
          .shared_bytes = BlockMemory::kBytes},
         SampleKernel,
         SamplingRows{.logits = logits.Row<float>(0),
                      .stride = logits.stride,
                      .columns = static_cast<int>(logits.columns),
                      .aligned = RowsAreAligned(logits.data, logits.stride, sizeof(float)),
                      .summaries = summaries,
                      .slots = slots,
                      .sequences = sequences,
                      .out = out,
                      .adjusted = static_cast<float*>(scratch),
                      .adjusted_stride = AdjustedStride(logits.columns)});
}

}  // namespace marcoro::cuda
