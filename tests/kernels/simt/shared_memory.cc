#include "tests/kernels/simt/shared_memory.h"

#include <utility>

namespace marcoro::simt {
namespace {

constexpr size_t kAlignment = 1024;
constexpr size_t kMostReadSets = 1 << 20;

}  // namespace

size_t ReadSets::KeyHash::operator()(const Key& key) const {
  uint64_t hash = key.set * 0x9e3779b97f4a7c15u;
  hash = (hash ^ static_cast<uint32_t>(key.read.who)) * 0xbf58476d1ce4e5b9u;
  hash = (hash ^ (hash >> 29) ^ key.read.when) * 0x94d049bb133111ebu;
  return hash ^ (hash >> 32);
}

uint32_t ReadSets::Add(uint32_t set, const Clock& order, const Moment& read) {
  if (sets_[set].size > 0 && sets_[set].read == read) return set;
  const Key key = {set, read};
  if (key == last_) return last_result_;
  last_ = key;
  if (const auto found = added_.find(key); found != added_.end()) {
    return last_result_ = found->second;
  }
  uint32_t rest = set;
  const bool after_last = sets_[set].size > 0 && order.IsAfter(sets_[set].read);
  if (after_last || sets_[set].size > 2 * sets_[set].pruned_size + 64) rest = Prune(set, order);
  last_result_ = Extend(rest, read);
  added_.emplace(key, last_result_);
  return last_result_;
}

// The set without the reads that `order` is after.
uint32_t ReadSets::Prune(uint32_t set, const Clock& order) {
  std::vector<Moment> kept;
  for (uint32_t s = set; sets_[s].size > 0; s = sets_[s].rest) {
    if (!order.IsAfter(sets_[s].read)) kept.push_back(sets_[s].read);
  }
  uint32_t pruned = 0;
  for (const Moment& read : kept) pruned = Extend(pruned, read);
  if (pruned != 0) sets_[pruned].pruned_size = sets_[pruned].size;
  return pruned;
}

uint32_t ReadSets::Extend(uint32_t set, const Moment& read) {
  // The empty set has many that begin with it: those are worth finding again.
  const Key key = {0, read};
  if (set == 0) {
    if (const auto found = added_.find(key); found != added_.end()) return found->second;
  }
  const Set extended = {read, set, sets_[set].size + 1, sets_[set].pruned_size};
  sets_.push_back(extended);
  const auto number = static_cast<uint32_t>(sets_.size() - 1);
  if (set == 0) added_.emplace(key, number);
  return number;
}

std::optional<Moment> ReadSets::FirstUnordered(uint32_t set, const Clock& order) const {
  for (uint32_t s = set; sets_[s].size > 0; s = sets_[s].rest) {
    if (!order.IsAfter(sets_[s].read)) return sets_[s].read;
  }
  return std::nullopt;
}

SharedState::SharedState(size_t bytes)
    : bytes_(bytes), memory_(bytes + kAlignment, '\xff'), state_(bytes) {
  const auto address = reinterpret_cast<uintptr_t>(memory_.data());
  data_ = memory_.data() + (kAlignment - address % kAlignment) % kAlignment;
}

bool SharedState::Holds(const void* begin, size_t bytes) const {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const auto first = reinterpret_cast<uintptr_t>(data_);
  return address >= first && bytes <= bytes_ && address <= first + (bytes_ - bytes);
}

std::optional<SharedState::Race> SharedState::NoteRead(const void* address, size_t bytes,
                                                       const Clock& order, const Moment& at) {
  if (read_sets_.size() > kMostReadSets) ForgetReads();
  const size_t begin = Offset(address);
  for (size_t i = begin; i < begin + bytes; ++i) {
    ByteState& byte = state_[i];
    if (!order.IsAfter(byte.write)) return Race{i, byte.write, true};
    byte.reads = read_sets_.Add(byte.reads, order, at);
  }
  return std::nullopt;
}

std::optional<SharedState::Race> SharedState::NoteWrite(void* address, size_t bytes,
                                                        const Clock& order, const Moment& at) {
  const size_t begin = Offset(address);
  uint32_t ordered_reads = 0;  // a set that was found to be ordered before
  std::optional<Race> race;
  for (size_t i = begin; i < begin + bytes; ++i) {
    ByteState& byte = state_[i];
    if (!race && !order.IsAfter(byte.write)) race = Race{i, byte.write, true};
    if (!race && byte.reads != ordered_reads) {
      const auto read = read_sets_.FirstUnordered(byte.reads, order);
      if (read) race = Race{i, *read, false};
      ordered_reads = byte.reads;
    }
    byte = {at, 0};
  }
  return race;
}

void SharedState::ForgetReads() {
  for (ByteState& byte : state_) byte.reads = 0;
  read_sets_ = ReadSets();
}

std::optional<SharedState::Race> SharedState::FindWrite(
    const void* address, size_t bytes, const std::function<bool(const Moment&)>& accepted) const {
  const size_t begin = Offset(address);
  Moment last;
  for (size_t i = begin; i < begin + bytes; ++i) {
    const Moment& write = state_[i].write;
    if (write == last) continue;
    if (!accepted(write)) return Race{i, write, true};
    last = write;
  }
  return std::nullopt;
}

}  // namespace marcoro::simt
