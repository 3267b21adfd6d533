#include "worker/weights/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace marcoro {
namespace {

using nlohmann::json;

constexpr size_t kMaxDimensions = 16;
constexpr size_t kMaxNameInMessage = 120;

std::string QuoteName(std::string_view name) {
  return absl::CHexEscape(absl::string_view(name.data(), std::min(name.size(), kMaxNameInMessage)));
}

// What the header says of one tensor, not yet checked against the file.
struct RawEntry {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  std::vector<uint64_t> range;
  bool has_dtype = false;
  bool has_shape = false;
  bool has_range = false;
};

// Takes the header's JSON event by event, so that a hostile header costs no more memory than its
// own size, and refuses whatever is not {name: {dtype, shape, data_offsets}, "__metadata__": {text:
// text}}.
class HeaderHandler final : public nlohmann::json_sax<json> {
 public:
  const std::string& error() const { return error_; }
  std::vector<RawEntry>& entries() { return entries_; }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { return Unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return Unexpected("a fraction"); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (list_ == nullptr) return Unexpected("a number");
    if (list_->size() == kMaxDimensions) return Fail("a list has too many numbers");
    list_->push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ != 2 || list_ != nullptr) return Unexpected("a string");
    if (in_metadata_) return true;
    if (key_ != "dtype") return Unexpected("a string");
    entries_.back().dtype = value;
    return true;
  }

  bool start_object(size_t) override {
    if (list_ != nullptr || depth_ == 2) return Unexpected("an object");
    ++depth_;
    return true;
  }

  bool key(string_t& value) override { return depth_ == 1 ? TopKey(value) : InnerKey(value); }

  bool end_object() override {
    --depth_;
    if (depth_ != 1 || in_metadata_) return true;
    const RawEntry& entry = entries_.back();
    if (!entry.has_dtype || !entry.has_shape || !entry.has_range) {
      return Fail("it lacks dtype, shape or data_offsets");
    }
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || list_ != nullptr) return Unexpected("a list");
    if (key_ == "shape") {
      list_ = &entries_.back().shape;
    } else if (key_ == "data_offsets") {
      list_ = &entries_.back().range;
    } else {
      return Unexpected("a list");
    }
    return true;
  }

  bool end_array() override {
    list_ = nullptr;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    error_ = absl::StrCat("the header is not valid JSON at byte ", position);
    return false;
  }

 private:
  bool TopKey(const std::string& name) {
    in_metadata_ = name == "__metadata__";
    if (!names_.insert(name).second) return FailAbout(name, "it appears twice");
    if (in_metadata_) return true;
    entries_.emplace_back();
    entries_.back().name = name;
    key_.clear();
    return true;
  }

  bool InnerKey(const std::string& name) {
    if (in_metadata_) return true;
    RawEntry& entry = entries_.back();
    bool* seen = name == "dtype"          ? &entry.has_dtype
                 : name == "shape"        ? &entry.has_shape
                 : name == "data_offsets" ? &entry.has_range
                                          : nullptr;
    if (seen == nullptr) return Fail(absl::StrCat("unknown key ", QuoteName(name)));
    if (*seen) return Fail(absl::StrCat("key ", name, " appears twice"));
    *seen = true;
    key_ = name;
    return true;
  }

  bool Unexpected(const char* what) { return Fail(absl::StrCat("unexpected ", what)); }

  bool Fail(const std::string& what) {
    if (depth_ == 0) return FailAbout("", what);
    return FailAbout(in_metadata_       ? "__metadata__"
                     : entries_.empty() ? ""
                                        : entries_.back().name,
                     what);
  }

  bool FailAbout(const std::string& name, const std::string& what) {
    error_ = name.empty() ? absl::StrCat("header: ", what)
                          : absl::StrCat("tensor ", QuoteName(name), ": ", what);
    return false;
  }

  std::vector<RawEntry> entries_;
  absl::flat_hash_set<std::string> names_;
  std::string key_;                        // of the current tensor
  std::vector<uint64_t>* list_ = nullptr;  // the list being read
  int depth_ = 0;                          // open objects
  bool in_metadata_ = false;
  std::string error_;
};

// Bytes of a tensor of that shape, by checked multiplication.
absl::StatusOr<uint64_t> CheckedBytes(const RawEntry& raw) {
  const int bits = SafetensorsDTypeBits(raw.dtype);
  if (bits == 0) {
    return absl::InvalidArgumentError(absl::StrCat("unknown dtype ", QuoteName(raw.dtype)));
  }
  uint64_t total = static_cast<uint64_t>(bits);
  for (const uint64_t dimension : raw.shape) {
    if (dimension > static_cast<uint64_t>(INT64_MAX) ||
        __builtin_mul_overflow(total, dimension, &total)) {
      return absl::InvalidArgumentError("its shape overflows");
    }
  }
  if (total % 8 != 0) return absl::InvalidArgumentError("it does not fill whole bytes");
  return total / 8;
}

absl::StatusOr<SafetensorsEntry> CheckEntry(RawEntry raw, uint64_t data_offset, uint64_t data_bytes,
                                            const std::string& file) {
  absl::StatusOr<uint64_t> bytes = CheckedBytes(raw);
  if (!bytes.ok()) return bytes.status();
  if (raw.range.size() != 2) {
    return absl::InvalidArgumentError("data_offsets must be two numbers");
  }
  const uint64_t begin = raw.range[0];
  const uint64_t end = raw.range[1];
  if (begin > end || end > data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("data_offsets [", begin, ", ", end,
                                                   "] lie outside the file's ", data_bytes,
                                                   " bytes of data"));
  }
  if (end - begin != *bytes) {
    return absl::InvalidArgumentError(absl::StrCat("data_offsets hold ", end - begin,
                                                   " bytes, its shape and dtype need ", *bytes));
  }
  SafetensorsEntry entry;
  entry.info.name = std::move(raw.name);
  entry.info.dtype = std::move(raw.dtype);
  entry.info.shape.assign(raw.shape.begin(), raw.shape.end());
  entry.info.origin = file;
  entry.info.bytes = *bytes;
  entry.offset = data_offset + begin;
  return entry;
}

// Ranges one after the other, from the first byte of the data to the last.
absl::Status CheckCoverage(const std::vector<SafetensorsEntry>& entries, uint64_t data_offset,
                           uint64_t data_bytes, const std::string& file) {
  uint64_t end = data_offset;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.offset != end) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": tensor ", QuoteName(entry.info.name), ": its data ",
                       entry.offset < end ? "overlaps the tensor before it"
                                          : "leaves a gap after the tensor before it"));
    }
    end += entry.info.bytes;
  }
  if (end == data_offset + data_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", data_offset + data_bytes - end,
                                                 " bytes at the end belong to no tensor"));
}

absl::Status FileError(const std::string& path, int error) {
  const std::string message = absl::StrCat(path, ": ", std::strerror(error));
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
  return absl::UnavailableError(message);
}

// Reads exactly `bytes` bytes; DATA_LOSS where the file ends before.
absl::Status ReadFully(int descriptor, uint64_t offset, uint64_t bytes, void* out) {
  char* next = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t count = pread(descriptor, next, bytes, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::DataLossError(std::strerror(errno));
    if (count == 0) return absl::DataLossError("the file ends early");
    next += count;
    offset += static_cast<uint64_t>(count);
    bytes -= static_cast<uint64_t>(count);
  }
  return absl::OkStatus();
}

// The header's text, after its length is checked against the file's.
absl::StatusOr<std::string> ReadHeader(int descriptor, uint64_t file_bytes,
                                       const std::string& path) {
  uint64_t length = 0;
  if (file_bytes < sizeof(length)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": too short for a safetensors file (", file_bytes, " bytes)"));
  }
  if (absl::Status status = ReadFully(descriptor, 0, sizeof(length), &length); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
  }
  if (length > kMaxSafetensorsHeader || length > file_bytes - sizeof(length)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": claims a header of ", length,
                                                   " bytes in a file of ", file_bytes,
                                                   " (truncated, or not a safetensors file)"));
  }
  std::string header(length, '\0');
  absl::Status status = ReadFully(descriptor, sizeof(length), length, header.data());
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
  }
  return header;
}

}  // namespace

int SafetensorsDTypeBits(std::string_view dtype) {
  static constexpr std::pair<std::string_view, int> kBits[] = {
      {"BOOL", 8},    {"U8", 8},   {"I8", 8},      {"F8_E4M3", 8}, {"F8_E5M2", 8},
      {"F8_E8M0", 8}, {"F4", 4},   {"U16", 16},    {"I16", 16},    {"F16", 16},
      {"BF16", 16},   {"U32", 32}, {"F6_E2M3", 6}, {"I32", 32},    {"F32", 32},
      {"U64", 64},    {"I64", 64}, {"F64", 64},    {"F6_E3M2", 6}, {"C64", 64}};
  for (const auto& [name, bits] : kBits) {
    if (name == dtype) return bits;
  }
  return 0;
}

absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view header,
                                                                     uint64_t data_offset,
                                                                     uint64_t data_bytes,
                                                                     const std::string& file) {
  if (header.empty() || header.front() != '{') {
    return absl::InvalidArgumentError(absl::StrCat(file, ": the header is not a JSON object"));
  }
  HeaderHandler handler;
  if (!json::sax_parse(header.begin(), header.end(), &handler)) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", handler.error()));
  }
  std::vector<SafetensorsEntry> entries;
  entries.reserve(handler.entries().size());
  for (RawEntry& raw : handler.entries()) {
    const std::string name = raw.name;
    absl::StatusOr<SafetensorsEntry> entry =
        CheckEntry(std::move(raw), data_offset, data_bytes, file);
    if (!entry.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": tensor ", QuoteName(name), ": ", entry.status().message()));
    }
    entries.push_back(*std::move(entry));
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.offset, a.info.bytes, a.info.name) <
           std::tie(b.offset, b.info.bytes, b.info.name);
  });
  absl::Status covered = CheckCoverage(entries, data_offset, data_bytes, file);
  if (!covered.ok()) return covered;
  return entries;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  // Non-blocking, because a FIFO of that name would wait for a writer.
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return FileError(path, errno);
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(path, descriptor));
  struct stat info;
  if (fstat(descriptor, &info) != 0) return FileError(path, errno);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  file->bytes_ = info.st_size;
  file->written_ = info.st_mtim;
  const uint64_t file_bytes = static_cast<uint64_t>(info.st_size);
  absl::StatusOr<std::string> header = ReadHeader(descriptor, file_bytes, path);
  if (!header.ok()) return header.status();
  const uint64_t data_offset = sizeof(uint64_t) + header->size();
  absl::StatusOr<std::vector<SafetensorsEntry>> entries =
      ParseSafetensorsHeader(*header, data_offset, file_bytes - data_offset, path);
  if (!entries.ok()) return entries.status();
  file->entries_ = *std::move(entries);
  return file;
}

SafetensorsFile::~SafetensorsFile() { close(descriptor_); }

absl::Status SafetensorsFile::Read(const SafetensorsEntry& entry, uint64_t first, uint64_t bytes,
                                   void* out) const {
  MARCORO_CHECK(first <= entry.info.bytes && bytes <= entry.info.bytes - first);
  absl::Status status = ReadFully(descriptor_, entry.offset + first, bytes, out);
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(path_, ": tensor ", QuoteName(entry.info.name),
                                                  ": ", status.message()));
}

absl::Status SafetensorsFile::CheckUnchanged() const {
  struct stat info;
  if (fstat(descriptor_, &info) != 0) return FileError(path_, errno);
  if (info.st_size == bytes_ && info.st_mtim.tv_sec == written_.tv_sec &&
      info.st_mtim.tv_nsec == written_.tv_nsec) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(path_, ": was changed while it was read"));
}

void SafetensorsFile::Prefetch(const SafetensorsEntry& entry, uint64_t first,
                               uint64_t bytes) const {
  MARCORO_CHECK(first <= entry.info.bytes && bytes <= entry.info.bytes - first);
  // A hint: nothing is lost where the file system does not take it.
  posix_fadvise(descriptor_, static_cast<off_t>(entry.offset + first), static_cast<off_t>(bytes),
                POSIX_FADV_WILLNEED);
}

void SafetensorsFile::Discard(const SafetensorsEntry& entry) const {
  posix_fadvise(descriptor_, static_cast<off_t>(entry.offset), static_cast<off_t>(entry.info.bytes),
                POSIX_FADV_DONTNEED);
}

}  // namespace marcoro
