#include "worker/weights/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/weights/safetensors.h"

namespace marcoro {
namespace {

constexpr size_t kAlignment = 8;  // of the data, as other writers have it

absl::Status WriteFully(int descriptor, const std::string& path, uint64_t offset, const void* data,
                        uint64_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t count = pwrite(descriptor, next, bytes, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return WriteError(path, count < 0 ? errno : EIO);
    next += count;
    offset += static_cast<uint64_t>(count);
    bytes -= static_cast<uint64_t>(count);
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t OutputTensor::bytes() const {
  uint64_t bits = static_cast<uint64_t>(SafetensorsDTypeBits(dtype));
  for (const int64_t dimension : shape) bits *= static_cast<uint64_t>(dimension);
  return bits / 8;
}

SafetensorsLayout LayOutSafetensors(const std::vector<OutputTensor>& tensors) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&tensors](size_t a, size_t b) {
    const int a_bits = SafetensorsDTypeBits(tensors[a].dtype);
    const int b_bits = SafetensorsDTypeBits(tensors[b].dtype);
    return a_bits != b_bits ? a_bits > b_bits : a < b;
  });
  nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  SafetensorsLayout layout;
  layout.offsets.resize(tensors.size());
  uint64_t end = 0;
  for (const size_t i : order) {
    const OutputTensor& tensor = tensors[i];
    layout.offsets[i] = end;
    end += tensor.bytes();
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {layout.offsets[i], end}}};
  }
  std::string text = header.dump();
  text.append((kAlignment - text.size() % kAlignment) % kAlignment, ' ');
  const uint64_t length = text.size();
  layout.head.assign(reinterpret_cast<const char*>(&length), sizeof(length));
  layout.head += text;
  for (uint64_t& offset : layout.offsets) offset += layout.head.size();
  layout.file_bytes = layout.head.size() + end;
  return layout;
}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, const std::vector<OutputTensor>& tensors) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) return WriteError(path, errno);
  std::unique_ptr<SafetensorsWriter> writer(new SafetensorsWriter(path, descriptor));
  writer->tensors_ = tensors;
  writer->layout_ = LayOutSafetensors(tensors);
  const std::string& head = writer->layout_.head;
  absl::Status status = WriteFully(descriptor, path, 0, head.data(), head.size());
  if (!status.ok()) return status;
  return writer;
}

SafetensorsWriter::~SafetensorsWriter() { close(descriptor_); }

absl::Status SafetensorsWriter::Write(size_t tensor, uint64_t first, const void* data,
                                      uint64_t bytes) {
  MARCORO_CHECK(tensor < tensors_.size());
  const uint64_t tensor_bytes = tensors_[tensor].bytes();
  MARCORO_CHECK(first <= tensor_bytes && bytes <= tensor_bytes - first);
  return WriteFully(descriptor_, path_, layout_.offsets[tensor] + first, data, bytes);
}

absl::Status SafetensorsWriter::Finish() {
  return fsync(descriptor_) == 0 ? absl::OkStatus() : WriteError(path_, errno);
}

absl::Status WriteError(const std::string& path, int error) {
  const std::string message = absl::StrCat(path, ": cannot be written: ", std::strerror(error));
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
    return absl::ResourceExhaustedError(message);
  }
  return absl::UnavailableError(message);
}

}  // namespace marcoro
