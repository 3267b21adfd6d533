// Finds the token at which a sum of weights, taken in the order of tokens by (key, id), passes a
// target: exactly, in whole numbers, without sorting. For sampling.cu.
//
// A histogram tells the bin in which the sum passes the target; its tokens are collected and, if
// they are few, ranked against each other. If they are many (equal keys, mostly), the next
// histogram divides them further: by the bits of the key, then by id. A pass over the row makes a
// histogram, another collects: two passes nearly always.
#pragma once

#include "kernels/cuda/sampling_block.h"

namespace marcoro::cuda {

// A token as one number: smaller numbers come first.
using Rank = uint64_t;
inline constexpr Rank kLastRank = ~Rank{0};
MARCORO_DEVICE Rank RankOf(uint32_t key, int id) {
  return static_cast<Rank>(key) << 32 | static_cast<uint32_t>(id);
}

// Where a token stands. A larger distance (>= 0) never comes with a smaller key.
struct Measured {
  float distance;
  uint32_t key;
};

// Distances fall into bins of 1/32, the last of which holds all that is beyond.
MARCORO_DEVICE int BinOf(float distance) {
  const float bin = Multiply(distance, 32.0f);
  return bin < static_cast<float>(kBins - 1) ? static_cast<int>(bin) : kBins - 1;
}

// Tokens that are still in question.
struct TokenRange {
  int bin = -1;  // of their distances; -1: any
  uint32_t key_mask = 0;
  uint32_t key = 0;   // under the mask
  int id_shift = 31;  // their ids, shifted so
  int id = 0;
};

MARCORO_DEVICE bool IsInRange(const TokenRange& range, const Measured& token, int id) {
  return (range.bin < 0 || BinOf(token.distance) == range.bin) &&
         (token.key & range.key_mask) == range.key && id >> range.id_shift == range.id;
}

// How histograms divide tokens, one after the other: by distance (level 0), by four pieces of the
// key (1 to 4), by the upper and by the lower half of the id (5, 6). After the last of them one
// token is left.
inline constexpr int kDigitBits = 10;
inline constexpr uint32_t kDigitMask = (1u << kDigitBits) - 1;
static_assert(kBins == 1 << kDigitBits);

// Where the digit of a level begins. The last piece of the key overlaps the one before.
MARCORO_DEVICE int KeyShift(int level) {
  if (level == 1) return 22;
  if (level == 2) return 12;
  return level == 3 ? 2 : 0;
}

MARCORO_DEVICE int DigitOf(int level, const Measured& token, int id) {
  if (level == 0) return BinOf(token.distance);
  if (level <= 4) return static_cast<int>(token.key >> KeyShift(level) & kDigitMask);
  return level == 5 ? id >> kDigitBits : id & static_cast<int>(kDigitMask);
}

MARCORO_DEVICE TokenRange Narrowed(TokenRange range, int level, int digit) {
  if (level == 0) {
    range.bin = digit;
  } else if (level <= 4) {
    const int shift = KeyShift(level);
    range.key_mask = 0xffffffffu << shift;
    range.key = (range.key & ~(kDigitMask << shift)) | static_cast<uint32_t>(digit) << shift;
  } else if (level == 5) {
    range.id_shift = kDigitBits;
    range.id = digit;
  } else {
    range.id_shift = 0;
    range.id = range.id << kDigitBits | digit;
  }
  return range;
}

MARCORO_DEVICE uint64_t WeightOfBin(const BlockMemory& memory, int bin) {
  const int place = PlaceOfBin(bin);
  return static_cast<uint64_t>(memory.high.Load(place)) << 32 | memory.low.Load(place);
}

// Weights of the tokens in range, by digit.
template <typename Tokens>
MARCORO_DEVICE void FillHistogram(const BlockMemory& memory, const LogitRow& row,
                                  const Tokens& tokens, const TokenRange& range, int level) {
  SyncBlock();
  MARCORO_ROLLED_LOOP
  for (int i = ThreadIndex(); i < kHistogramPlaces; i += BlockThreads()) {
    memory.low.Store(i, 0);
    memory.high.Store(i, 0);
  }
  SyncBlock();
  ForEachLogit(row, [&](int id, float logit) {
    const Measured token = tokens.Measure(logit);
    if (!IsInRange(range, token, id)) return;
    const uint32_t weight = tokens.Weight(id, logit);
    if (weight == 0) return;
    const int place = PlaceOfBin(DigitOf(level, token, id));
    const uint32_t before = AtomicAddShared(memory.low, place, weight);
    if (before + weight < before) AtomicAddShared(memory.high, place, 1);
  });
  SyncBlock();
}

struct PassedBin {
  int bin;          // kBins if the sum of all does not pass
  uint64_t target;  // less the weight of the bins before
};

// The bin in which the sum passes target_of(sum of all bins).
template <typename TargetOf>
MARCORO_DEVICE PassedBin FindBin(const BlockMemory& memory, const TargetOf& target_of) {
  if (Warp() == 0) {
    constexpr int kLaneBins = kBins / kWarpThreads;
    uint64_t mine = 0;
    MARCORO_ROLLED_LOOP
    for (int i = 0; i < kLaneBins; ++i) mine += WeightOfBin(memory, Lane() * kLaneBins + i);
    const uint64_t up_to_me = SumUpToLane(mine);
    const uint64_t total = Shuffle(up_to_me, kWarpThreads - 1);
    const uint64_t target = target_of(total);
    uint64_t left = target - (up_to_me - mine);
    if (up_to_me - mine <= target && target < up_to_me) {
      int bin = Lane() * kLaneBins;
      while (left >= WeightOfBin(memory, bin)) left -= WeightOfBin(memory, bin++);
      memory.answer.Store(0, static_cast<uint64_t>(bin));
      memory.answer.Store(1, left);
    }
    if (target >= total && Lane() == 0) {
      memory.answer.Store(0, kBins);
      memory.answer.Store(1, 0);
    }
  }
  SyncBlock();
  return {static_cast<int>(memory.answer.Load(0)), memory.answer.Load(1)};
}

// Lists the tokens in range, as far as there is room. Returns how many there are.
template <typename Tokens>
MARCORO_DEVICE int CollectCandidates(const BlockMemory& memory, const LogitRow& row,
                                     const Tokens& tokens, const TokenRange& range) {
  SyncBlock();
  if (ThreadIndex() == 0) memory.counter.Store(0, 0);
  SyncBlock();
  ForEachLogit(row, [&](int id, float logit) {
    const Measured token = tokens.Measure(logit);
    if (!IsInRange(range, token, id)) return;
    const uint32_t weight = tokens.Weight(id, logit);
    if (weight == 0) return;
    const auto place = static_cast<int>(AtomicAddShared(memory.counter, 0, 1));
    if (place >= kCandidates) return;
    memory.ranks.Store(place, RankOf(token.key, id));
    memory.weights.Store(place, weight);
  });
  SyncBlock();
  return static_cast<int>(memory.counter.Load(0));
}

// Weight of the candidates before `rank`.
MARCORO_DEVICE uint64_t WeightBefore(const BlockMemory& memory, int count, Rank rank) {
  uint64_t weight = 0;
  for (int i = 0; i < count; ++i) {
    if (memory.ranks.Load(i) < rank) weight += memory.weights.Load(i);
  }
  return weight;
}

// The candidate at which the sum passes the target. Whatever the order of the list.
MARCORO_DEVICE Rank PassingCandidate(const BlockMemory& memory, int count, uint64_t target) {
  MARCORO_ROLLED_LOOP
  for (int i = ThreadIndex(); i < count; i += BlockThreads()) {
    const Rank rank = memory.ranks.Load(i);
    const uint64_t before = WeightBefore(memory, count, rank);
    if (before <= target && target < before + memory.weights.Load(i)) memory.answer.Store(0, rank);
  }
  SyncBlock();
  return memory.answer.Load(0);
}

// By all threads of the block, all of which get the answer: the rank of the token at which the sum
// of weights passes target_of(sum of all weights); kLastRank if it does not. tokens.Measure(logit)
// returns Measured; tokens.Weight(id, logit), asked only where it matters, 0 for a token that takes
// no part.
template <typename Tokens, typename TargetOf>
MARCORO_DEVICE Rank SelectByWeight(const BlockMemory& memory, const LogitRow& row,
                                   const Tokens& tokens, const TargetOf& target_of) {
  TokenRange range;
  uint64_t target = 0;
  MARCORO_ROLLED_LOOP
  for (int level = 0;; ++level) {
    FillHistogram(memory, row, tokens, range, level);
    const PassedBin passed =
        FindBin(memory, [&](uint64_t total) { return level == 0 ? target_of(total) : target; });
    if (passed.bin == kBins) return kLastRank;
    target = passed.target;
    range = Narrowed(range, level, passed.bin);
    const int count = CollectCandidates(memory, row, tokens, range);
    if (count <= kCandidates) return PassingCandidate(memory, count, target);
  }
}

}  // namespace marcoro::cuda
