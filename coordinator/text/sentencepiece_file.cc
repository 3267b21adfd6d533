#include "coordinator/text/sentencepiece_file.h"

#include <bit>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"

namespace marcoro {
namespace {

// One field of a protobuf message: a number, or bytes.
struct Field {
  uint32_t number = 0;
  uint64_t value = 0;       // varint, fixed32 and fixed64
  absl::string_view bytes;  // length-delimited
};

std::optional<uint64_t> ReadVarint(absl::string_view* input) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && !input->empty(); shift += 7) {
    const auto byte = static_cast<uint8_t>(input->front());
    input->remove_prefix(1);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  return std::nullopt;
}

template <typename Number>
std::optional<uint64_t> ReadFixed(absl::string_view* input) {
  if (input->size() < sizeof(Number)) return std::nullopt;
  Number number;
  std::memcpy(&number, input->data(), sizeof(number));
  input->remove_prefix(sizeof(number));
  return number;
}

// Takes the next field off the input; false if it is malformed.
bool ReadField(absl::string_view* input, Field* field) {
  const std::optional<uint64_t> tag = ReadVarint(input);
  if (!tag.has_value() || *tag >> 3 == 0 || *tag >> 3 > 0x1fffffff) return false;
  field->number = static_cast<uint32_t>(*tag >> 3);
  std::optional<uint64_t> value;
  switch (*tag & 7) {
    case 0:
      value = ReadVarint(input);
      break;
    case 1:
      value = ReadFixed<uint64_t>(input);
      break;
    case 2:
      value = ReadVarint(input);
      if (!value.has_value() || *value > input->size()) return false;
      field->bytes = input->substr(0, *value);
      input->remove_prefix(*value);
      break;
    case 5:
      value = ReadFixed<uint32_t>(input);
      break;
    default:
      return false;  // groups: no field of this format is one
  }
  field->value = value.value_or(0);
  return value.has_value();
}

absl::Status Malformed() { return absl::InvalidArgumentError("it is not a sentencepiece model"); }

// ModelProto.SentencePiece
absl::Status ParsePiece(absl::string_view input, SentencePieceFile::Piece* piece) {
  Field field;
  while (!input.empty()) {
    if (!ReadField(&input, &field)) return Malformed();
    if (field.number == 1) piece->text = std::string(field.bytes);
    if (field.number == 2) piece->score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    if (field.number != 3) continue;
    if (field.value < 1 || field.value > 6) return Malformed();
    piece->type = static_cast<PieceType>(field.value);
  }
  return absl::OkStatus();
}

// TrainerSpec, as far as it says how to use the model
absl::Status ParseTrainer(absl::string_view input, SentencePieceFile* file, uint64_t* algorithm) {
  Field field;
  while (!input.empty()) {
    if (!ReadField(&input, &field)) return Malformed();
    if (field.number == 3) *algorithm = field.value;
    if (field.number == 24 && field.value != 0) {
      return absl::InvalidArgumentError(
          "it writes spaces behind words (treat_whitespace_as_suffix), which is not supported");
    }
    if (field.number == 35) file->byte_fallback = field.value != 0;
  }
  return absl::OkStatus();
}

// NormalizerSpec
absl::Status ParseNormalizer(absl::string_view input, SentencePieceFile* file) {
  std::string name;
  bool rewrites = false;
  Field field;
  while (!input.empty()) {
    if (!ReadField(&input, &field)) return Malformed();
    if (field.number == 1) name = std::string(field.bytes);
    if (field.number == 2) rewrites = !field.bytes.empty();
    if (field.number == 3) file->add_dummy_prefix = field.value != 0;
    if (field.number == 4) file->remove_extra_whitespaces = field.value != 0;
    if (field.number == 5) file->escape_whitespaces = field.value != 0;
  }
  if (!rewrites) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "its normalizer '", name, "' rewrites characters, which is not supported (identity is)"));
}

}  // namespace

absl::StatusOr<SentencePieceFile> ParseSentencePieceFile(absl::string_view bytes) {
  constexpr uint64_t kBpe = 2;
  SentencePieceFile file;
  uint64_t algorithm = 1;  // the format's default: unigram
  Field field;
  while (!bytes.empty()) {
    if (!ReadField(&bytes, &field)) return Malformed();
    absl::Status status;
    if (field.number == 1) status = ParsePiece(field.bytes, &file.pieces.emplace_back());
    if (field.number == 2) status = ParseTrainer(field.bytes, &file, &algorithm);
    if (field.number == 3) status = ParseNormalizer(field.bytes, &file);
    if (!status.ok()) return status;
  }
  if (file.pieces.empty()) return Malformed();
  if (algorithm != kBpe)
    return absl::InvalidArgumentError("its algorithm is not BPE, which alone is supported");
  return file;
}

}  // namespace marcoro
