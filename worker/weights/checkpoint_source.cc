#include "worker/weights/checkpoint_source.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/model/text_file.h"
#include "worker/weights/row_kernels.h"
#include "worker/weights/sha256.h"

namespace marcoro {
namespace {

using nlohmann::json;

constexpr size_t kMaxIndexBytes = 32u << 20;
constexpr size_t kMaxFiles = 10'000;
constexpr uint64_t kPageBytes = 4096;
constexpr size_t kReadElements = 32 * 1024;  // read and converted at once, on the stack

absl::Status TensorError(const TensorInfo& tensor, const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat(tensor.origin, ": tensor ", tensor.name, ": ", what));
}

// A name of a file in the same folder, and nothing else.
bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

// The index's map of tensor names to file names.
absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ReadIndex(
    const std::string& path) {
  absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxIndexBytes);
  if (!text.ok()) return text.status();
  const json root = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object() || !root.contains("weight_map") || !root["weight_map"].is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": has no weight_map object"));
  }
  std::vector<std::pair<std::string, std::string>> entries;
  for (const auto& [name, file] : root["weight_map"].items()) {
    if (!file.is_string() || !IsPlainFileName(file.get<std::string>())) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor ", name, ": must name a file in the same folder"));
    }
    entries.emplace_back(name, file.get<std::string>());
  }
  return entries;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CheckpointSource>> CheckpointSource::Open(
    const std::string& directory) {
  absl::StatusOr<std::unique_ptr<CheckpointSource>> source = OpenStored(directory);
  if (!source.ok()) return source;
  absl::StatusOr<std::optional<QuantizationScheme>> scheme = QuantizationScheme::Load(directory);
  if (!scheme.ok()) return scheme.status();
  if (!scheme->has_value()) return source;
  absl::StatusOr<WeightScalesMap> scales = ReadWeightScales(**source, **scheme);
  if (!scales.ok()) return scales.status();
  (*source)->quantization_ = *std::move(scheme);
  (*source)->scales_ = *std::move(scales);
  return source;
}

absl::StatusOr<std::unique_ptr<CheckpointSource>> CheckpointSource::OpenStored(
    const std::string& directory) {
  std::unique_ptr<CheckpointSource> source(new CheckpointSource(directory));
  const std::string single = absl::StrCat(directory, "/model.safetensors");
  const std::string index = absl::StrCat(directory, "/model.safetensors.index.json");
  absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(single);
  if (file.ok()) {
    for (const SafetensorsEntry& entry : (*file)->entries()) {
      source->tensors_.emplace(entry.info.name, Location{file->get(), &entry});
    }
    source->files_.push_back(*std::move(file));
    return source;
  }
  if (!absl::IsNotFound(file.status())) return file.status();
  absl::Status indexed = source->OpenIndexed(index);
  if (absl::IsNotFound(indexed)) {
    return absl::NotFoundError(absl::StrCat(
        directory, ": has neither model.safetensors nor model.safetensors.index.json"));
  }
  if (!indexed.ok()) return indexed;
  return source;
}

absl::Status CheckpointSource::OpenIndexed(const std::string& index_path) {
  auto index = ReadIndex(index_path);
  if (!index.ok()) return index.status();
  std::map<std::string, std::map<std::string, Location>> by_file;
  for (const auto& [name, file_name] : *index) {
    auto [contents, is_new] = by_file.try_emplace(file_name);
    if (is_new) {
      if (by_file.size() > kMaxFiles) {
        return absl::InvalidArgumentError(absl::StrCat(index_path, ": names too many files"));
      }
      auto file = SafetensorsFile::Open(absl::StrCat(directory_, "/", file_name));
      if (!file.ok()) {
        return absl::InvalidArgumentError(absl::StrCat(
            index_path, ": names a file that cannot be used: ", file.status().message()));
      }
      for (const SafetensorsEntry& entry : (*file)->entries()) {
        contents->second.emplace(entry.info.name, Location{file->get(), &entry});
      }
      files_.push_back(*std::move(file));
    }
    const auto found = contents->second.find(name);
    if (found == contents->second.end()) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": says that ", file_name,
                                                     " holds tensor ", name, ", it does not"));
    }
    tensors_.emplace(name, found->second);
  }
  return absl::OkStatus();
}

uint64_t CheckpointSource::StoredBytes() const {
  uint64_t bytes = 0;
  for (const auto& [name, location] : tensors_) bytes += location.entry->info.bytes;
  return bytes;
}

std::string CheckpointSource::Description() const {
  return absl::StrCat(directory_, " (", tensors_.size(), " tensors, ", StoredBytes(), " bytes, ",
                      files_.size(), files_.size() == 1 ? " file)" : " files)");
}

const TensorInfo* CheckpointSource::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second.entry->info;
}

std::vector<const TensorInfo*> CheckpointSource::Tensors() const {
  std::vector<const TensorInfo*> tensors;
  for (const auto& [name, location] : tensors_) tensors.push_back(&location.entry->info);
  return tensors;
}

const CheckpointSource::Location& CheckpointSource::Locate(const TensorInfo& tensor) const {
  const auto found = tensors_.find(tensor.name);
  MARCORO_CHECK(found != tensors_.end() && &found->second.entry->info == &tensor);
  return found->second;
}

void CheckpointSource::Prefetch(const TensorInfo& tensor, int64_t first_row, int64_t count) {
  if (tensor.bytes == 0) return;
  const Location& location = Locate(tensor);
  const uint64_t row_bytes = tensor.bytes / static_cast<uint64_t>(tensor.rows());
  read_ahead_.Add(*location.file, *location.entry, static_cast<uint64_t>(first_row) * row_bytes,
                  static_cast<uint64_t>(count) * row_bytes);
}

void CheckpointSource::Discard(const TensorInfo& tensor) {
  if (tensor.bytes == 0) return;  // for the kernel 0 bytes are all to the end of the file
  const Location& location = Locate(tensor);
  location.file->Discard(*location.entry);
}

absl::Status CheckpointSource::ReadRows(const TensorInfo& tensor, int64_t first_row, int64_t count,
                                        float* out) {
  const Location& location = Locate(tensor);
  MARCORO_CHECK(first_row >= 0 && count >= 0 && first_row + count <= tensor.rows());
  if (const WeightScales* scales = ScalesOf(tensor)) {
    return ReadDequantized(tensor, *scales, first_row, count, out);
  }
  const uint64_t first = static_cast<uint64_t>(first_row * tensor.columns());
  const uint64_t elements = static_cast<uint64_t>(count * tensor.columns());
  if (tensor.dtype == "F32") {
    return location.file->Read(*location.entry, first * 4, elements * 4, out);
  }
  const RowKernels& kernels = GetRowKernels();
  const auto convert = tensor.dtype == "BF16"  ? kernels.from_bf16
                       : tensor.dtype == "F16" ? kernels.from_f16
                                               : nullptr;
  if (convert == nullptr) {
    return TensorError(
        tensor, absl::StrCat("dtype ", tensor.dtype, " cannot be loaded (BF16, F16 and F32 can)"));
  }
  std::array<uint16_t, kReadElements> stored;
  for (uint64_t done = 0; done < elements;) {
    const uint64_t step = std::min<uint64_t>(elements - done, kReadElements);
    absl::Status status =
        location.file->Read(*location.entry, (first + done) * 2, step * 2, stored.data());
    if (!status.ok()) return status;
    convert(stored.data(), static_cast<int64_t>(step), out + done);
    done += step;
  }
  return absl::OkStatus();
}

std::optional<DType> CheckpointSource::StoredDType(const TensorInfo& tensor) const {
  if (ScalesOf(tensor) != nullptr) return std::nullopt;
  if (tensor.dtype == "BF16") return DType::kBF16;
  if (tensor.dtype == "F16") return DType::kF16;
  if (tensor.dtype == "F32") return DType::kF32;
  return std::nullopt;
}

absl::Status CheckpointSource::ReadStored(const TensorInfo& tensor, int64_t first_row,
                                          int64_t count, void* out) {
  const std::optional<DType> dtype = StoredDType(tensor);
  MARCORO_CHECK(dtype.has_value());
  MARCORO_CHECK(first_row >= 0 && count >= 0 && first_row + count <= tensor.rows());
  const Location& location = Locate(tensor);
  const uint64_t row_bytes = static_cast<uint64_t>(tensor.columns()) * SizeOf(*dtype);
  return location.file->Read(*location.entry, static_cast<uint64_t>(first_row) * row_bytes,
                             static_cast<uint64_t>(count) * row_bytes, out);
}

const WeightScales* CheckpointSource::ScalesOf(const TensorInfo& tensor) const {
  const auto found = scales_.find(tensor.name);
  return found == scales_.end() ? nullptr : &found->second;
}

Fp8Form CheckpointSource::FormOf(const TensorInfo& tensor) const {
  if (!quantization_.has_value()) return Fp8Form::kQuantize;
  const WeightScales* scales = ScalesOf(tensor);
  return scales != nullptr && scales->one_per_row() ? Fp8Form::kStored : Fp8Form::kNone;
}

absl::Status CheckpointSource::ReadStoredCodes(const TensorInfo& tensor, int64_t first_row,
                                               int64_t count, uint8_t* codes) {
  const Location& location = Locate(tensor);
  const uint64_t columns = static_cast<uint64_t>(tensor.columns());
  return location.file->Read(*location.entry, static_cast<uint64_t>(first_row) * columns,
                             static_cast<uint64_t>(count) * columns, codes);
}

absl::Status CheckpointSource::ReadCodes(const TensorInfo& tensor, int64_t first_row, int64_t count,
                                         uint8_t* codes, float* scales) {
  MARCORO_CHECK(FormOf(tensor) == Fp8Form::kStored);
  MARCORO_CHECK(first_row >= 0 && count >= 0 && first_row + count <= tensor.rows());
  const WeightScales& stored = *ScalesOf(tensor);
  for (int64_t i = 0; i < count; ++i) scales[i] = stored.OfRow(first_row + i);
  return ReadStoredCodes(tensor, first_row, count, codes);
}

absl::Status CheckpointSource::ReadDequantized(const TensorInfo& tensor, const WeightScales& scales,
                                               int64_t first_row, int64_t count, float* out) {
  const int64_t columns = tensor.columns();
  const int64_t step = std::max<int64_t>(1, int64_t{kReadElements} / std::max<int64_t>(1, columns));
  std::vector<uint8_t> codes(static_cast<size_t>(std::min(step, count) * columns));
  for (int64_t done = 0; done < count; done += step) {
    const int64_t rows = std::min(step, count - done);
    absl::Status status = ReadStoredCodes(tensor, first_row + done, rows, codes.data());
    if (!status.ok()) return status;
    Dequantize(codes.data(), first_row + done, rows, columns, scales, out + done * columns);
  }
  return absl::OkStatus();
}

absl::Status CheckpointSource::CheckUnchanged() const {
  for (const std::unique_ptr<SafetensorsFile>& file : files_) {
    if (absl::Status status = file->CheckUnchanged(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckpointSource::HashContents(const TensorInfo& tensor, Sha256& hash) {
  const Location& location = Locate(tensor);
  if (const WeightScales* scales = ScalesOf(tensor)) {
    for (const int64_t number :
         {static_cast<int64_t>(scales->layout), scales->block_rows, scales->block_columns}) {
      hash.Number(static_cast<uint64_t>(number));
    }
    hash.Bytes(scales->values.data(), scales->values.size() * sizeof(float));
  }
  std::array<char, kPageBytes> page;
  const auto add = [&](uint64_t first, uint64_t bytes) {
    absl::Status status = location.file->Read(*location.entry, first, bytes, page.data());
    if (status.ok()) hash.Bytes(page.data(), bytes);
    return status;
  };
  if (tensor.bytes <= kHashedPages * kPageBytes) {
    for (uint64_t first = 0; first < tensor.bytes; first += kPageBytes) {
      absl::Status status = add(first, std::min(kPageBytes, tensor.bytes - first));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  for (uint64_t i = 0; i < kHashedPages; ++i) {
    const uint64_t last = tensor.bytes - kPageBytes;
    absl::Status status = add(last / (kHashedPages - 1) * i, kPageBytes);
    if (!status.ok()) return status;
  }
  return add(tensor.bytes - kPageBytes, kPageBytes);
}

}  // namespace marcoro
