// The weights of a Hugging Face directory: model.safetensors, or model.safetensors.index.json and
// the files it names. FP8 weights are understood by what config.json (or hf_quant_config.json) says
// about them.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/weights/quantization_scheme.h"
#include "worker/weights/read_ahead.h"
#include "worker/weights/safetensors.h"
#include "worker/weights/tensor_source.h"
#include "worker/weights/weight_scales.h"

namespace marcoro {

class CheckpointSource : public TensorSource {
 public:
  // NOT_FOUND if the directory has no safetensors, INVALID_ARGUMENT for a file or index that is not
  // what it claims, a quantization that cannot be read, and scales that do not fit
  // (QuantizationScheme::Load, ReadWeightScales).
  static absl::StatusOr<std::unique_ptr<CheckpointSource>> Open(const std::string& directory);
  // The same, but blind for quantization: for those who only ask what tensors there are.
  static absl::StatusOr<std::unique_ptr<CheckpointSource>> OpenStored(const std::string& directory);

  // How its FP8 weights are stored; nothing if it is not pre-quantized.
  const std::optional<QuantizationScheme>& quantization() const { return quantization_; }

  std::string Description() const override;
  const TensorInfo* Find(std::string_view name) const override;
  std::vector<const TensorInfo*> Tensors() const override;
  void Prefetch(const TensorInfo& tensor, int64_t first_row, int64_t count) override;
  void Discard(const TensorInfo& tensor) override;
  uint64_t StoredBytes() const override;
  absl::Status ReadRows(const TensorInfo& tensor, int64_t first_row, int64_t count,
                        float* out) override;
  std::optional<DType> StoredDType(const TensorInfo& tensor) const override;
  absl::Status ReadStored(const TensorInfo& tensor, int64_t first_row, int64_t count,
                          void* out) override;
  Fp8Form FormOf(const TensorInfo& tensor) const override;
  absl::Status ReadCodes(const TensorInfo& tensor, int64_t first_row, int64_t count, uint8_t* codes,
                         float* scales) override;
  absl::Status CheckUnchanged() const override;
  // The scales, if it has some, and the whole of a small tensor; of a large one, kHashedPages pages
  // of 4 KiB at equal distances, the first and the last among them.
  absl::Status HashContents(const TensorInfo& tensor, Sha256& hash) override;

  static constexpr int kHashedPages = 16;

 private:
  struct Location {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
  };

  explicit CheckpointSource(std::string directory) : directory_(std::move(directory)) {}
  absl::Status OpenIndexed(const std::string& index_path);
  const Location& Locate(const TensorInfo& tensor) const;
  // Null for a tensor that is not pre-quantized.
  const WeightScales* ScalesOf(const TensorInfo& tensor) const;
  absl::Status ReadStoredCodes(const TensorInfo& tensor, int64_t first_row, int64_t count,
                               uint8_t* codes);
  absl::Status ReadDequantized(const TensorInfo& tensor, const WeightScales& scales,
                               int64_t first_row, int64_t count, float* out);

  const std::string directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Location, std::less<>> tensors_;
  std::optional<QuantizationScheme> quantization_;
  WeightScalesMap scales_;
  ReadAhead read_ahead_;  // of the files
};

}  // namespace marcoro
