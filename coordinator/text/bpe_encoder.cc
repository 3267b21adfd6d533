#include "coordinator/text/bpe_encoder.h"

#include <algorithm>
#include <cstdlib>
#include <queue>

namespace marcoro {
namespace {

size_t CharacterBytes(char first) {
  const auto byte = static_cast<uint8_t>(first);
  if (byte < 0x80) return 1;
  if (byte < 0xe0) return 2;
  return byte < 0xf0 ? 3 : 4;
}

}  // namespace

// A stretch of the text between two neighbours; empty once it has been joined to the one on its
// left.
struct BpeEncoder::Symbol {
  std::string_view text;
  int32_t previous = -1;
  int32_t next = -1;
  bool frozen = false;  // a user-defined piece: never joined
};

struct BpeEncoder::Merge {
  float score = 0;
  int32_t left = 0;
  int32_t right = 0;
  size_t bytes = 0;  // of both when it was found; else one of them has changed since

  bool operator<(const Merge& other) const {
    return score != other.score ? score < other.score : left > other.left;
  }
};

// One text's way from characters to pieces.
class BpeEncoder::Run {
 public:
  Run(const BpeEncoder& encoder, std::string_view text) : encoder_(encoder) {
    while (!text.empty()) {
      Symbol symbol;
      const size_t bytes = encoder.NextSymbol(text, &symbol.frozen);
      symbol.text = text.substr(0, bytes);
      text.remove_prefix(bytes);
      symbol.previous = static_cast<int32_t>(symbols_.size()) - 1;
      symbol.next = text.empty() ? -1 : static_cast<int32_t>(symbols_.size()) + 1;
      symbols_.push_back(symbol);
    }
    for (int32_t right = 1; right < static_cast<int32_t>(symbols_.size()); ++right)
      Consider(right - 1, right);
    while (!agenda_.empty()) {
      const Merge merge = agenda_.top();
      agenda_.pop();
      Join(merge);
    }
  }

  const std::vector<Symbol>& symbols() const { return symbols_; }

  // The two texts that an unused piece was joined from.
  const std::pair<std::string_view, std::string_view>* Origin(std::string_view unused) const {
    const auto found = origins_.find(unused);
    return found == origins_.end() ? nullptr : &found->second;
  }

 private:
  void Consider(int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const Symbol& first = symbols_[left];
    const Symbol& second = symbols_[right];
    if (first.frozen || second.frozen) return;
    const std::string_view text(first.text.data(), first.text.size() + second.text.size());
    const auto found = encoder_.mergeable_.find(text);
    if (found == encoder_.mergeable_.end()) return;
    const SentencePieceFile::Piece& piece = encoder_.file_.pieces[found->second];
    agenda_.push({.score = piece.score, .left = left, .right = right, .bytes = text.size()});
    if (piece.type == PieceType::kUnused) origins_[text] = {first.text, second.text};
  }

  void Join(const Merge& merge) {
    Symbol& left = symbols_[merge.left];
    Symbol& right = symbols_[merge.right];
    if (left.text.empty() || right.text.empty() ||
        left.text.size() + right.text.size() != merge.bytes)
      return;
    left.text = std::string_view(left.text.data(), merge.bytes);
    left.next = right.next;
    if (right.next >= 0) symbols_[right.next].previous = merge.left;
    right.text = std::string_view();
    Consider(left.previous, merge.left);
    Consider(merge.left, left.next);
  }

  const BpeEncoder& encoder_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Merge> agenda_;
  absl::flat_hash_map<std::string_view, std::pair<std::string_view, std::string_view>> origins_;
};

BpeEncoder::BpeEncoder(const SentencePieceFile& file) : file_(file) {
  for (int32_t id = 0; id < static_cast<int32_t>(file.pieces.size()); ++id) {
    const SentencePieceFile::Piece& piece = file.pieces[id];
    switch (piece.type) {
      case PieceType::kUserDefined:
        user_defined_.push_back(piece.text);
        [[fallthrough]];
      case PieceType::kNormal:
      case PieceType::kUnused:
        mergeable_.emplace(piece.text, id);
        break;
      case PieceType::kUnknown:
        unknown_ = id;
        break;
      case PieceType::kByte:
        byte_ids_[std::strtol(piece.text.c_str() + 3, nullptr, 16) & 0xff] = id;  // <0xNN>
        break;
      case PieceType::kControl:
        break;
    }
  }
  std::sort(user_defined_.begin(), user_defined_.end(),
            [](std::string_view a, std::string_view b) { return a.size() > b.size(); });
}

size_t BpeEncoder::NextSymbol(std::string_view text, bool* frozen) const {
  for (const std::string_view piece : user_defined_) {
    if (text.substr(0, piece.size()) != piece) continue;
    *frozen = true;
    return piece.size();
  }
  return std::min(CharacterBytes(text.front()), text.size());
}

void BpeEncoder::Encode(std::string_view text, std::vector<int32_t>* ids) const {
  const Run run(*this, text);
  bool after_unknown = false;
  for (const Symbol& symbol : run.symbols()) {
    if (!symbol.text.empty()) Emit(symbol.text, run, &after_unknown, ids);
  }
}

void BpeEncoder::Emit(std::string_view symbol, const Run& run, bool* after_unknown,
                      std::vector<int32_t>* ids) const {
  const auto found = mergeable_.find(symbol);
  if (found != mergeable_.end()) {
    const auto* origin =
        file_.pieces[found->second].type == PieceType::kUnused ? run.Origin(symbol) : nullptr;
    if (origin == nullptr) {
      ids->push_back(found->second);
      *after_unknown = false;
      return;
    }
    Emit(origin->first, run, after_unknown, ids);
    Emit(origin->second, run, after_unknown, ids);
    return;
  }
  if (file_.byte_fallback) {
    for (const char byte : symbol) ids->push_back(byte_ids_[static_cast<uint8_t>(byte)]);
    return;
  }
  if (!*after_unknown) ids->push_back(unknown_);
  *after_unknown = true;
}

}  // namespace marcoro
