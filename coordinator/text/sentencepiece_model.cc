#include "coordinator/text/sentencepiece_model.h"

#include <cstdlib>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/bpe_encoder.h"
#include "coordinator/text/sentencepiece_file.h"

namespace marcoro {
namespace {

constexpr std::string_view kSpaceSymbol = "\xe2\x96\x81";  // ▁

bool IsBytePiece(const std::string& text) {
  return text.size() == 6 && text.compare(0, 3, "<0x") == 0 && absl::ascii_isxdigit(text[3]) &&
         absl::ascii_isxdigit(text[4]) && text[5] == '>';
}

// What the encoder relies on; empty if all is well.
std::string CheckPieces(const SentencePieceFile& file) {
  absl::flat_hash_map<std::string_view, int32_t> seen;
  int unknown = 0;
  int bytes = 0;
  for (const SentencePieceFile::Piece& piece : file.pieces) {
    if (piece.text.empty()) return "it has an empty piece";
    if (!seen.emplace(piece.text, 0).second)
      return absl::StrCat("it has the piece '", piece.text, "' twice");
    unknown += piece.type == PieceType::kUnknown ? 1 : 0;
    if (piece.type != PieceType::kByte) continue;
    if (!IsBytePiece(piece.text))
      return absl::StrCat("its byte piece '", piece.text, "' is not of the form <0xNN>");
    ++bytes;
  }
  if (unknown != 1) return absl::StrCat("it has ", unknown, " unknown pieces, not one");
  if (file.byte_fallback && bytes != 256)
    return absl::StrCat("it has ", bytes, " byte pieces, not 256");
  return "";
}

}  // namespace

struct SentencePieceModel::Parts {
  Parts(SentencePieceFile file_in, bool add_dummy_prefix_in)
      : file(std::move(file_in)),
        add_dummy_prefix(add_dummy_prefix_in && file.add_dummy_prefix),
        encoder(file) {
    for (size_t id = 0; id < file.pieces.size(); ++id)
      ids.emplace(file.pieces[id].text, static_cast<int32_t>(id));
  }

  const SentencePieceFile file;
  const bool add_dummy_prefix;
  const BpeEncoder encoder;
  absl::flat_hash_map<std::string_view, int32_t> ids;
};

SentencePieceModel::SentencePieceModel(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

SentencePieceModel::~SentencePieceModel() = default;

std::unique_ptr<SentencePieceModel> SentencePieceModel::Parse(std::string_view bytes,
                                                              bool add_dummy_prefix,
                                                              std::string* error) {
  auto file = ParseSentencePieceFile({bytes.data(), bytes.size()});
  *error = file.ok() ? CheckPieces(*file) : std::string(file.status().message());
  if (!error->empty()) return nullptr;
  return std::unique_ptr<SentencePieceModel>(
      new SentencePieceModel(std::make_unique<Parts>(*std::move(file), add_dummy_prefix)));
}

int32_t SentencePieceModel::size() const {
  return static_cast<int32_t>(parts_->file.pieces.size());
}

std::string SentencePieceModel::Bytes(int32_t id) const {
  const SentencePieceFile::Piece& piece = parts_->file.pieces[id];
  if (piece.type == PieceType::kByte) {
    return std::string(1, static_cast<char>(std::strtol(piece.text.c_str() + 3, nullptr, 16)));
  }
  std::string bytes;
  size_t done = 0;
  for (size_t at; (at = piece.text.find(kSpaceSymbol, done)) != std::string::npos;) {
    bytes.append(piece.text, done, at - done).push_back(' ');
    done = at + kSpaceSymbol.size();
  }
  return bytes.append(piece.text, done);
}

TokenKind SentencePieceModel::Kind(int32_t id) const {
  switch (parts_->file.pieces[id].type) {
    case PieceType::kByte:
      return TokenKind::kByte;
    case PieceType::kControl:
    case PieceType::kUnknown:
      return TokenKind::kSpecial;
    default:
      return TokenKind::kText;
  }
}

int32_t SentencePieceModel::Find(std::string_view piece) const {
  const auto found = parts_->ids.find(piece);
  return found == parts_->ids.end() ? -1 : found->second;
}

LeadingSpace SentencePieceModel::leading_space() const {
  if (parts_->file.remove_extra_whitespaces) return LeadingSpace::kStripAll;
  return parts_->add_dummy_prefix ? LeadingSpace::kStripOne : LeadingSpace::kKeep;
}

std::string SentencePieceModel::Spell(std::string_view text) const {
  const std::string_view space =
      parts_->file.escape_whitespaces ? kSpaceSymbol : std::string_view(" ");
  std::string spelled;
  if (parts_->add_dummy_prefix) spelled += space;
  const size_t prefix = spelled.size();
  bool after_space = true;
  for (const char character : text) {
    const bool is_space = character == ' ';
    if (is_space && after_space && parts_->file.remove_extra_whitespaces) continue;
    after_space = is_space;
    if (is_space) {
      spelled += space;
    } else {
      spelled += character;
    }
  }
  if (spelled.size() == prefix) return "";
  if (parts_->file.remove_extra_whitespaces && after_space)
    spelled.erase(spelled.size() - space.size());
  return spelled;
}

void SentencePieceModel::Encode(std::string_view text, std::vector<int32_t>* ids) const {
  parts_->encoder.Encode(Spell(text), ids);
}

}  // namespace marcoro
