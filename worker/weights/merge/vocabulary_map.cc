#include "worker/weights/merge/vocabulary_map.h"

#include <string>
#include <utility>

namespace marcoro {
namespace {

// The row of a token in a table, or -1.
int32_t RowOf(const VocabularyTable& table, const std::string& token) {
  const int32_t row = table.vocabulary->Find(token);
  return row < table.rows ? row : -1;
}

}  // namespace

VocabularyMap AlignVocabularies(const Vocabulary& merged,
                                const std::vector<VocabularyTable>& tables, int32_t base) {
  VocabularyMap map;
  map.rows.resize(tables.size());
  for (const std::string& token : merged.tokens()) {
    std::vector<VocabularyRow> owners;
    for (size_t i = 0; i < tables.size(); ++i) {
      const int32_t row = RowOf(tables[i], token);
      map.rows[i].push_back(row);
      if (row >= 0) owners.push_back({static_cast<int32_t>(i), row});
    }
    if (owners.size() == tables.size()) continue;
    const int32_t base_row = base < 0 ? -1 : map.rows[base].back();
    if (base_row >= 0) owners = {{base, base_row}};
    for (std::vector<int32_t>& rows : map.rows) {
      if (rows.back() < 0) rows.back() = -1 - static_cast<int32_t>(map.substitutes.size());
    }
    map.substitutes.push_back(std::move(owners));
  }
  return map;
}

VocabularyMap CommonRows(size_t tables, int32_t rows) {
  std::vector<int32_t> first(rows);
  for (int32_t row = 0; row < rows; ++row) first[row] = row;
  return {.rows = std::vector<std::vector<int32_t>>(tables, first), .substitutes = {}};
}

bool IsIdentity(const VocabularyMap& map, const std::vector<VocabularyTable>& tables) {
  for (size_t i = 0; i < tables.size(); ++i) {
    if (map.rows[i].size() != static_cast<size_t>(tables[i].rows)) return false;
    for (size_t row = 0; row < map.rows[i].size(); ++row) {
      if (map.rows[i][row] != static_cast<int32_t>(row)) return false;
    }
  }
  return true;
}

}  // namespace marcoro
