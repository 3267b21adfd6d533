// Ranges of files that are read soon, asked for on a thread of its own: a disk then works while the
// loader's threads do, and none of them waits where the kernel makes room for pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "worker/weights/safetensors.h"

namespace marcoro {

// For several threads.
class ReadAhead {
 public:
  // Ranges that wait at the same time; more are forgotten.
  static constexpr size_t kMostRanges = 4096;

  ReadAhead() = default;
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;
  // Forgets what waits.
  ~ReadAhead();

  // `bytes` bytes of the entry from byte `first` on, behind what was added before. File and entry
  // outlive this object. The thread begins with the first range.
  void Add(const SafetensorsFile& file, const SafetensorsEntry& entry, uint64_t first,
           uint64_t bytes);

 private:
  struct Range {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
    uint64_t first;
    uint64_t bytes;
  };

  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stop_ || !ranges_.empty(); }
  void Run();
  // A piece of the range that was added first; false at the end.
  bool TakePiece(Range* piece);

  absl::Mutex mutex_;
  std::deque<Range> ranges_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace marcoro
