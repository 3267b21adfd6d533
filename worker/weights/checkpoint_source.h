// The weights of a Hugging Face directory: model.safetensors, or model.safetensors.index.json and
// the files it names.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/weights/safetensors.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

class CheckpointSource : public TensorSource {
 public:
  // NOT_FOUND if the directory has no safetensors, INVALID_ARGUMENT for a file or index that is not
  // what it claims.
  static absl::StatusOr<std::unique_ptr<CheckpointSource>> Open(const std::string& directory);

  std::string Description() const override;
  const TensorInfo* Find(std::string_view name) const override;
  std::vector<const TensorInfo*> Tensors() const override;
  void Prefetch(const TensorInfo& tensor, int64_t first_row, int64_t count) override;
  absl::Status ReadRows(const TensorInfo& tensor, int64_t first_row, int64_t count,
                        float* out) override;
  // The whole of a small tensor; of a large one, kHashedPages pages of 4 KiB at equal distances,
  // the first and the last among them.
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

  const std::string directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Location, std::less<>> tensors_;
};

}  // namespace marcoro
