#include "worker/weights/merge/sentencepiece_tokens.h"

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace marcoro {
namespace {

constexpr size_t kMaxPieces = 1 << 22;

// Fields of a message in protobuf's wire format.
class FieldReader {
 public:
  explicit FieldReader(std::string_view bytes) : rest_(bytes) {}

  struct Field {
    uint64_t number = 0;
    std::string_view bytes;  // of a length-delimited field
  };

  // The next field. Nothing at the end, and when the bytes are no message: then ok() is false.
  std::optional<Field> Next() {
    if (rest_.empty()) return std::nullopt;
    const uint64_t tag = Varint();
    Field field{.number = tag >> 3, .bytes = {}};
    switch (tag & 7) {
      case 0:
        Varint();
        break;
      case 1:
        Take(8);
        break;
      case 2:
        field.bytes = Take(Varint());
        break;
      case 5:
        Take(4);
        break;
      default:
        ok_ = false;
    }
    ok_ = ok_ && field.number != 0;
    if (!ok_) return std::nullopt;
    return field;
  }

  bool ok() const { return ok_; }

 private:
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const std::string_view byte = Take(1);
      if (!ok_) return 0;
      value |= uint64_t{static_cast<unsigned char>(byte[0]) & 0x7fu} << shift;
      if ((static_cast<unsigned char>(byte[0]) & 0x80) == 0) return value;
    }
    ok_ = false;
    return 0;
  }

  std::string_view Take(uint64_t count) {
    if (!ok_ || count > rest_.size()) {
      ok_ = false;
      return {};
    }
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }

  std::string_view rest_;
  bool ok_ = true;
};

std::optional<std::string> PieceText(std::string_view piece) {
  std::string text;
  FieldReader reader(piece);
  while (const auto field = reader.Next()) {
    if (field->number == 1) text = std::string(field->bytes);
  }
  if (!reader.ok() || text.empty()) return std::nullopt;
  return text;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ReadSentencePieceTokens(std::string_view bytes,
                                                                 const std::string& file) {
  const absl::Status malformed =
      absl::InvalidArgumentError(absl::StrCat(file, ": not a sentencepiece model"));
  std::vector<std::string> tokens;
  FieldReader reader(bytes);
  while (const auto field = reader.Next()) {
    if (field->number != 1) continue;
    std::optional<std::string> text = PieceText(field->bytes);
    if (!text.has_value() || tokens.size() >= kMaxPieces) return malformed;
    tokens.push_back(*std::move(text));
  }
  if (!reader.ok() || tokens.empty()) return malformed;
  return tokens;
}

}  // namespace marcoro
