// Parents of a merge and recipes, written by tests.
#pragma once

#include <cstdint>
#include <string>

#include "tests/worker/weights/checkpoint_files.h"

namespace marcoro::testing {

struct ParentShape {
  int layers = 2;
  int64_t vocabulary = 12;
  int64_t hidden = 8;
  int64_t ffn = 16;
  int64_t heads = 2;
  int64_t kv_heads = 1;
  std::string dtype = "BF16";
  bool tied = false;  // no lm_head
};

// Tensors of such a Mistral model, all zero.
StoredTensors ZeroTensors(const ParentShape& shape);

// Writes directory/config.json and model.safetensors.
void WriteParent(const std::string& directory, const ParentShape& shape = {});

// Writes directory/config.json alone.
void WriteParentConfig(const std::string& directory, const ParentShape& shape);

// A folder for parents and a recipe that names them.
class RecipeFolder {
 public:
  void AddParent(const std::string& name, const ParentShape& shape = {}) {
    WriteParent(folder_.File(name), shape);
  }
  // Writes recipe.yml and returns its path.
  std::string Write(const std::string& recipe) const;
  std::string File(const std::string& name) const { return folder_.File(name); }

 private:
  TempFolder folder_;
};

}  // namespace marcoro::testing
