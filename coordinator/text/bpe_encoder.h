// Byte pair encoding as sentencepiece defines it (arXiv 1808.06226; merges by score: arXiv
// 1508.07909).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "coordinator/text/sentencepiece_file.h"

namespace marcoro {

// Immutable; const members may be called from any number of threads.
class BpeEncoder {
 public:
  // The file must outlive the encoder and be consistent: one unknown piece, no text twice, all byte
  // pieces if it falls back to bytes.
  explicit BpeEncoder(const SentencePieceFile& file);

  // Appends the ids of a text in which spaces are already written as the model writes them: again
  // and again the neighbours whose union is the piece of the highest score are joined (the leftmost
  // of equals), beginning with single characters. What is no piece becomes its bytes, or the
  // unknown piece (one for neighbours). `text` is valid UTF-8. n log n.
  void Encode(std::string_view text, std::vector<int32_t>* ids) const;

 private:
  struct Symbol;
  struct Merge;
  class Run;

  size_t NextSymbol(std::string_view text, bool* frozen) const;
  void Emit(std::string_view symbol, const Run& run, bool* after_unknown,
            std::vector<int32_t>* ids) const;

  const SentencePieceFile& file_;
  absl::flat_hash_map<std::string_view, int32_t>
      mergeable_;                               // normal, user-defined and unused pieces
  std::vector<std::string_view> user_defined_;  // longest first
  int32_t unknown_ = 0;
  int32_t byte_ids_[256] = {};
};

}  // namespace marcoro
