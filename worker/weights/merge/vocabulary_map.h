// How tables over different vocabularies are brought to one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "worker/weights/merge/merge_plan.h"
#include "worker/weights/merge/vocabulary.h"

namespace marcoro {

// A table that is merged: its model's vocabulary, and how many rows it has.
struct VocabularyTable {
  const Vocabulary* vocabulary = nullptr;
  int32_t rows = 0;
};

// For every token of the merged vocabulary, the rows of the tables that hold it. A table that lacks
// it takes the base's row; without a base that has it, the mean of the rows of those that do (so,
// of a sole owner, its row). `base` is an index into `tables`, or -1.
VocabularyMap AlignVocabularies(const Vocabulary& merged,
                                const std::vector<VocabularyTable>& tables, int32_t base);

// Every table's first `rows` rows.
VocabularyMap CommonRows(size_t tables, int32_t rows);

// Whether each table is taken as it is: all have exactly the map's rows, in order.
bool IsIdentity(const VocabularyMap& map, const std::vector<VocabularyTable>& tables);

}  // namespace marcoro
