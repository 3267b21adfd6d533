#include "worker/weights/read_ahead.h"

#include <algorithm>
#include <utility>

namespace marcoro {
namespace {

// The kernel takes of one request no more than the device's read-ahead, which is seldom less.
constexpr uint64_t kPieceBytes = 128 << 10;

}  // namespace

ReadAhead::~ReadAhead() {
  std::thread thread;
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
    thread = std::move(thread_);
  }
  if (thread.joinable()) thread.join();
}

void ReadAhead::Add(const SafetensorsFile& file, const SafetensorsEntry& entry, uint64_t first,
                    uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (bytes == 0 || stop_ || ranges_.size() >= kMostRanges) return;
  ranges_.push_back({&file, &entry, first, bytes});
  if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
}

void ReadAhead::Run() {
  Range piece;
  while (TakePiece(&piece)) piece.file->Prefetch(*piece.entry, piece.first, piece.bytes);
}

bool ReadAhead::TakePiece(Range* piece) {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &ReadAhead::HasWork));
  if (stop_) return false;
  Range& range = ranges_.front();
  *piece = range;
  piece->bytes = std::min(range.bytes, kPieceBytes);
  range.first += piece->bytes;
  range.bytes -= piece->bytes;
  if (range.bytes == 0) ranges_.pop_front();
  return true;
}

}  // namespace marcoro
