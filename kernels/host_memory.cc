// The parts of a backend that follow from its memory being the program's own.
#include <cstring>

#include "kernels/backend.h"
#include "kernels/op_checks.h"
#include "kernels/token_sampler.h"

namespace marcoro {

absl::Status Backend::Upload(const void* source, void* memory, size_t bytes) {
  if (bytes > 0) std::memcpy(memory, source, bytes);
  return absl::OkStatus();
}

absl::Status Backend::Download(const void* memory, void* out, size_t bytes) {
  if (bytes > 0) std::memcpy(out, memory, bytes);
  return absl::OkStatus();
}

void Backend::GatherRows(const Tensor& from, absl::Span<const int32_t> rows, const Tensor& to) {
  CheckGatherRows(from, rows, to);
  const size_t bytes = static_cast<size_t>(to.columns) * SizeOf(to.dtype);
  for (int64_t r = 0; r < to.rows; ++r) std::memcpy(to.RowBytes(r), from.RowBytes(rows[r]), bytes);
}

void Backend::CopyMatrix(const Tensor& from, const Tensor& to) {
  CheckCopyMatrix(from, to);
  const size_t bytes = static_cast<size_t>(to.columns) * SizeOf(to.dtype);
  for (int64_t r = 0; r < to.rows; ++r) std::memcpy(to.RowBytes(r), from.RowBytes(r), bytes);
}

absl::StatusOr<std::unique_ptr<TokenSampler>> Backend::MakeTokenSampler(
    const TokenSamplerLimits& limits) {
  return nullptr;
}

}  // namespace marcoro
