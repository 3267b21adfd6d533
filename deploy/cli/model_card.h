// The README.md of a merged model.
#pragma once

#include <string>

#include "worker/weights/merge/merge_plan.h"

namespace marcoro {

// Markdown with the front matter that hubs read: which models it is made of, by which method, and
// the recipe's text. The title is the last part of `directory`.
std::string ModelCard(const MergePlan& plan, const std::string& recipe_text,
                      const std::string& directory);

}  // namespace marcoro
