#include "kernels/cuda/row_stage.h"

#include <algorithm>
#include <cstdint>

#include "kernels/check.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"
#include "kernels/op_checks.h"

namespace marcoro::cuda {
namespace {

constexpr size_t kAlignment = 256;

size_t AlignUp(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Any thread of the host may use it, one at a time.
class CudaRowStage final : public RowStage {
 public:
  CudaRowStage(int device, size_t bytes, DType activations, Stream stream)
      : device_(device), bytes_(AlignUp(bytes)), activations_(activations), stream_(stream) {}
  ~CudaRowStage() override {
    EnterDevice(device_);
    Synchronize(stream_).IgnoreError();  // the memory may still be read
    DestroyStream(stream_);
  }

  // Memory for the rows and, behind them, what the device tells of them.
  absl::Status Allocate() {
    absl::Status status = pinned_.Reserve(stream_, bytes_ + sizeof(uint32_t));
    if (!status.ok()) return status;
    *not_finite() = 0;
    // As they are stored, then as they are packed: never more.
    return device_memory_.Reserve(stream_, 2 * bytes_);
  }

  void* memory() const override { return pinned_.data(); }
  absl::Status Pack(const StagedRows& rows, const PackedWeight& weight, int64_t first_row) override;
  absl::Status Copy(const StagedRows& rows, const Tensor& matrix) override;
  absl::StatusOr<bool> Wait() override;

 private:
  char* stored() const { return static_cast<char*>(device_memory_.data()); }
  char* converted() const { return stored() + bytes_; }
  uint32_t* not_finite() const {
    return reinterpret_cast<uint32_t*>(static_cast<char*>(pinned_.data()) + bytes_);
  }
  // Queues the copy of the rows to the device.
  void Send(const StagedRows& rows);
  NumberRows Numbers(const StagedRows& rows, int64_t kept_columns) const;
  void PackCodes(const StagedRows& rows, const PackedWeight& weight, int64_t first_row);
  // Queues the packing of rows of the weight's type, dense in device memory.
  void PackDense(const PackedWeight& weight, int64_t first_row, int64_t count, const void* rows) {
    const bool quantized = weight.shape.dtype == DType::kF8E4M3;
    cuda::PackWeight(stream_, weight, first_row, count, rows,
                     quantized ? activations_ : DType::kBF16);
  }

  const int device_;
  const size_t bytes_;
  const DType activations_;
  const Stream stream_;
  GrowingMemory pinned_{MemoryKind::kPinned};
  GrowingMemory device_memory_{MemoryKind::kDevice};
};

void CudaRowStage::Send(const StagedRows& rows) {
  const size_t bytes = static_cast<size_t>(rows.count * rows.columns) * SizeOf(rows.dtype);
  MARCORO_CHECK(bytes <= bytes_);
  EnterDevice(device_);
  *not_finite() = 0;
  CopyToDevice(stream_, stored(), memory(), bytes);
}

NumberRows CudaRowStage::Numbers(const StagedRows& rows, int64_t kept_columns) const {
  return {.data = stored(),
          .dtype = rows.dtype,
          .count = static_cast<int>(rows.count),
          .columns = static_cast<int>(rows.columns),
          .first_column = static_cast<int>(rows.first_column),
          .kept_columns = static_cast<int>(kept_columns)};
}

void CudaRowStage::PackCodes(const StagedRows& rows, const PackedWeight& weight,
                             int64_t first_row) {
  const auto* scales = reinterpret_cast<const char*>(rows.scales);
  const size_t bytes = static_cast<size_t>(rows.count) * sizeof(float);
  const char* begin = static_cast<const char*>(memory());
  MARCORO_CHECK(scales >= begin && scales + bytes <= begin + bytes_);
  CopyToDevice(stream_, weight.scales + first_row, scales, bytes);
  PackDense(weight, first_row, rows.count, stored());
}

absl::Status CudaRowStage::Pack(const StagedRows& rows, const PackedWeight& weight,
                                int64_t first_row) {
  const int64_t columns = weight.shape.columns;
  CheckPackWeight(weight, first_row, rows.count, memory());
  CheckStagedRows(rows, columns);
  Send(rows);
  if (rows.dtype == DType::kF8E4M3) {
    MARCORO_CHECK(weight.shape.dtype == DType::kF8E4M3);
    PackCodes(rows, weight, first_row);
    return CheckQueued();
  }
  if (weight.shape.dtype == DType::kF8E4M3) {
    QuantizeRows(stream_, Numbers(rows, columns), reinterpret_cast<uint8_t*>(converted()),
                 weight.scales + first_row, not_finite());
  } else {
    MARCORO_CHECK(weight.shape.dtype == DType::kBF16);
    RoundRows(stream_, Numbers(rows, columns),
              Tensor(converted(), DType::kBF16, rows.count, columns), not_finite());
  }
  PackDense(weight, first_row, rows.count, converted());
  return CheckQueued();
}

absl::Status CudaRowStage::Copy(const StagedRows& rows, const Tensor& matrix) {
  MARCORO_CHECK(matrix.dtype == DType::kBF16 && matrix.data != nullptr);
  MARCORO_CHECK(matrix.rows == rows.count && rows.dtype != DType::kF8E4M3);
  CheckStagedRows(rows, matrix.columns);
  Send(rows);
  RoundRows(stream_, Numbers(rows, matrix.columns), matrix, not_finite());
  return CheckQueued();
}

absl::StatusOr<bool> CudaRowStage::Wait() {
  EnterDevice(device_);
  if (absl::Status status = Synchronize(stream_); !status.ok()) return status;
  return *not_finite() == 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RowStage>> MakeRowStage(int device, size_t bytes,
                                                       DType activations) {
  MARCORO_CHECK(bytes > 0);
  EnterDevice(device);
  const auto stream = CreateStream();
  if (!stream.ok()) return stream.status();
  auto stage = std::make_unique<CudaRowStage>(device, bytes, activations, *stream);
  if (absl::Status status = stage->Allocate(); !status.ok()) return status;
  return stage;
}

}  // namespace marcoro::cuda
