// The shared memory of one block, and who touched which of its bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <unordered_map>
#include <vector>

#include "tests/kernels/simt/clock.h"

namespace marcoro::simt {

// Sets of reads, numbered: neighbouring bytes are mostly read by the same threads, so that a byte
// needs only the number of its set. 0 is the empty one.
class ReadSets {
 public:
  ReadSets() : sets_(1) {}

  // The set with one read more, which is ordered after all that `order` is after. Reads that are
  // ordered before it may be left out: what is ordered after it is ordered after them.
  uint32_t Add(uint32_t set, const Clock& order, const Moment& read);
  // A read of the set that `order` is not after.
  std::optional<Moment> FirstUnordered(uint32_t set, const Clock& order) const;
  size_t size() const { return sets_.size(); }

 private:
  struct Set {
    Moment read;
    uint32_t rest = 0;  // the set without it
    uint32_t size = 0;
    uint32_t pruned_size = 0;  // when reads were last left out
  };
  struct Key {
    uint32_t set;
    Moment read;
    friend bool operator==(const Key&, const Key&) = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };

  uint32_t Prune(uint32_t set, const Clock& order);
  uint32_t Extend(uint32_t set, const Moment& read);

  std::vector<Set> sets_;
  std::unordered_map<Key, uint32_t, KeyHash> added_;
  Key last_ = {};  // the last Add, and what came of it
  uint32_t last_result_ = 0;
};

class SharedState {
 public:
  // The memory is aligned to 1024 bytes and begins as 0xff: NaN, whatever the type.
  explicit SharedState(size_t bytes);

  char* data() const { return data_; }
  bool Holds(const void* begin, size_t bytes) const;

  // Two accesses that nothing orders.
  struct Race {
    size_t byte;
    Moment other;
    bool other_wrote;
  };
  // Note an access at moment `at`, by someone who is ordered after all that `order` is after.
  std::optional<Race> NoteRead(const void* address, size_t bytes, const Clock& order,
                               const Moment& at);
  std::optional<Race> NoteWrite(void* address, size_t bytes, const Clock& order, const Moment& at);
  // The first byte whose writer (a moment) is not accepted.
  std::optional<Race> FindWrite(const void* address, size_t bytes,
                                const std::function<bool(const Moment&)>& accepted) const;

 private:
  struct ByteState {
    Moment write;
    uint32_t reads = 0;  // since the write
  };

  // Forgets all reads, when there are too many sets of them.
  void ForgetReads();
  size_t Offset(const void* address) const {
    return static_cast<size_t>(static_cast<const char*>(address) - data_);
  }

  size_t bytes_;
  std::vector<char> memory_;
  char* data_;
  std::vector<ByteState> state_;
  ReadSets read_sets_;
};

}  // namespace marcoro::simt
