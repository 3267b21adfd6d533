#include "kernels/cuda/step_upload.h"

#include <algorithm>

#include "kernels/check.h"

namespace marcoro::cuda {
namespace {

// Lays arrays side by side in pinned memory, and tells where each will be on the device.
class Writer {
 public:
  Writer(void* host, void* device)
      : host_(static_cast<int32_t*>(host)), device_(static_cast<int32_t*>(device)) {}

  struct Array {
    int32_t* host;
    int32_t* device;
  };
  Array Take(size_t count) {
    const Array array = {host_ + used_, device_ + used_};
    used_ += count;
    return array;
  }
  const int32_t* Copy(absl::Span<const int32_t> values) {
    const Array array = Take(values.size());
    std::copy(values.begin(), values.end(), array.host);
    return array.device;
  }
  size_t used() const { return used_; }

 private:
  int32_t* host_;
  int32_t* device_;
  size_t used_ = 0;
};

// Rows of a step that has ids; without them, of one that has sequences only.
size_t RowsOf(const StepInput& input) {
  size_t rows = input.ids.size();
  for (const SequenceSpan& sequence : input.sequences) {
    rows = std::max(rows, static_cast<size_t>(sequence.first_row + sequence.tokens));
  }
  return rows;
}

size_t BlocksOf(const StepInput& input) {
  size_t blocks = 0;
  for (const SequenceSpan& sequence : input.sequences) {
    blocks += static_cast<size_t>(sequence.block_count);
  }
  return blocks;
}

struct SequenceArrays {
  Writer::Array positions;
  Writer::Array row_sequences;
  Writer::Array first_rows;
  Writer::Array tokens;
  Writer::Array first_positions;
  Writer::Array first_blocks;
  Writer::Array blocks;
};

// Fills the arrays and the bounds.
void WriteSequences(absl::Span<const SequenceSpan> sequences, const SequenceArrays& arrays,
                    DeviceStep& step) {
  int32_t blocks = 0;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const SequenceSpan& sequence = sequences[s];
    MARCORO_CHECK(sequence.first_row >= 0 && sequence.tokens > 0);
    arrays.first_rows.host[s] = sequence.first_row;
    arrays.tokens.host[s] = sequence.tokens;
    arrays.first_positions.host[s] = sequence.position;
    arrays.first_blocks.host[s] = blocks;
    std::copy_n(sequence.blocks, sequence.block_count, arrays.blocks.host + blocks);
    blocks += sequence.block_count;
    for (int32_t t = 0; t < sequence.tokens; ++t) {
      arrays.positions.host[sequence.first_row + t] = sequence.position + t;
      arrays.row_sequences.host[sequence.first_row + t] = static_cast<int32_t>(s);
    }
    step.most_tokens = std::max(step.most_tokens, sequence.tokens);
    step.context = std::max(step.context, sequence.position + sequence.tokens);
  }
  for (auto s = sequences.size(); s < static_cast<size_t>(step.sequences); ++s) {
    arrays.first_rows.host[s] = 0;
    arrays.tokens.host[s] = 0;
    arrays.first_positions.host[s] = 0;
    arrays.first_blocks.host[s] = 0;
  }
}

}  // namespace

StepUpload::~StepUpload() {
  if (copied_.has_value()) DestroyEvent(*copied_);
}

size_t StepUpload::Count(size_t rows, size_t sequences, size_t logit_rows, size_t blocks) {
  return 3 * rows + 4 * sequences + static_cast<size_t>(ArrivalCounters()) + logit_rows + blocks;
}

size_t StepUpload::Bytes(const StepLimits& limits) {
  const auto rows = static_cast<size_t>(limits.tokens);
  const auto sequence_blocks =
      static_cast<size_t>((limits.context_length + kKvBlockTokens - 1) / kKvBlockTokens);
  // Every sequence has a token.
  return Count(rows, rows, static_cast<size_t>(limits.logit_rows), rows * sequence_blocks) *
         sizeof(int32_t);
}

absl::Status StepUpload::ReserveCount(Stream stream, size_t count) {
  if (absl::Status status = pinned_.Reserve(stream, count * sizeof(int32_t)); !status.ok()) {
    return status;
  }
  return device_.Reserve(stream, count * sizeof(int32_t));
}

absl::Status StepUpload::Reserve(Stream stream, const StepLimits& limits) {
  return ReserveCount(stream, Bytes(limits) / sizeof(int32_t));
}

absl::Status StepUpload::Begin(Stream stream, const StepInput& input, const StepRoom& room) {
  const size_t rows = RowsOf(input);
  const size_t sequences = std::max(input.sequences.size(), static_cast<size_t>(room.sequences));
  const size_t blocks = BlocksOf(input);
  absl::Status status =
      ReserveCount(stream, Count(rows, sequences, input.logit_rows.size(), blocks));
  if (!status.ok()) return status;
  // Not for the step before, which may run: for its beginning.
  if (copying_) {
    if (status = WaitForEvent(*copied_); !status.ok()) return status;
    copying_ = false;
  }
  Writer writer(pinned_.data(), device_.data());
  step_ = {.rows = static_cast<int>(rows),
           .sequences = static_cast<int>(sequences),
           .context = room.context};
  const Writer::Array ids = writer.Take(rows);
  std::fill_n(ids.host, rows, 0);
  std::copy(input.ids.begin(), input.ids.end(), ids.host);
  SequenceArrays arrays = {.positions = writer.Take(rows),
                           .row_sequences = writer.Take(rows),
                           .first_rows = writer.Take(sequences),
                           .tokens = writer.Take(sequences),
                           .first_positions = writer.Take(sequences),
                           .first_blocks = writer.Take(sequences),
                           .blocks = {}};
  const Writer::Array arrivals = writer.Take(static_cast<size_t>(ArrivalCounters()));
  std::fill_n(arrivals.host, ArrivalCounters(), 0);
  logit_rows_ = writer.Copy(input.logit_rows);
  arrays.blocks = writer.Take(blocks);  // last: only their number differs between steps of a shape
  std::fill_n(arrays.positions.host, rows, -1);
  std::fill_n(arrays.row_sequences.host, rows, 0);
  WriteSequences(input.sequences, arrays, step_);
  step_.ids = ids.device;
  step_.positions = arrays.positions.device;
  step_.row_sequences = arrays.row_sequences.device;
  step_.first_rows = arrays.first_rows.device;
  step_.tokens = arrays.tokens.device;
  step_.first_positions = arrays.first_positions.device;
  step_.first_blocks = arrays.first_blocks.device;
  step_.blocks = arrays.blocks.device;
  step_.arrivals = reinterpret_cast<uint32_t*>(arrivals.device);
  CopyToDevice(stream, device_.data(), pinned_.data(), writer.used() * sizeof(int32_t));
  if (!copied_.has_value()) {
    const absl::StatusOr<Event> event = CreateEvent();
    if (!event.ok()) return event.status();
    copied_ = *event;
  }
  MarkEvent(stream, *copied_);
  copying_ = true;
  return absl::OkStatus();
}

}  // namespace marcoro::cuda
