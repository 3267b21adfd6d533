// What a recipe comes to: for every tensor of the merged model, which tensors of which parents go
// into it and with which numbers. Gradients, filters and precedence are evaluated here once; a
// method sees plain numbers.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "worker/model/config.h"

namespace marcoro {

// Evaluated parameters by mergekit's names: "t", "weight", "density", "normalize" (0 or 1), …
using MergeParameters = std::map<std::string, double>;

// A parent; or a model of which nothing but the tokenizer is used, or the config: then no tensor
// names it, and it may have no weights.
struct MergeModel {
  std::string reference;  // as the recipe names it
  std::string directory;  // where it was found
};

struct MergeInput {
  int32_t model = 0;           // index into MergePlan::models
  std::string tensor;          // its name there: other layers than the output's in a stack
  MergeParameters parameters;  // of this input
};

// A stored row of an input's embedding or lm_head.
struct VocabularyRow {
  int32_t input = 0;  // index into TensorMerge::inputs
  int32_t row = 0;

  bool operator==(const VocabularyRow&) const = default;
};

// How tables over different vocabularies come to one: each input, after rounding to the recipe's
// dtype, is read as a table with a row for every token of the merged vocabulary.
struct VocabularyMap {
  // rows[input][token]: which stored row of that input it is; or -1 - k, for substitutes[k].
  std::vector<std::vector<int32_t>> rows;
  // What stands for rows that an input lacks: the mean of these, zeros if there are none. (The
  // sum in this order, from zero, and the division are each rounded to the inputs' dtype, as in
  // mergekit; one row is itself.)
  std::vector<std::vector<VocabularyRow>> substitutes;
};

struct TensorMerge {
  std::string name;                // of the output
  std::vector<MergeInput> inputs;  // in the recipe's order, a base that was not listed last
  int32_t base = -1;               // index into inputs; -1: the recipe has no base
  MergeParameters parameters;      // of the whole tensor
  // Index into MergePlan::vocabularies; -1: rows stay where they are, all inputs have one shape.
  int32_t vocabulary = -1;
};

struct MergePlan {
  std::string recipe;  // the file
  std::string method;
  std::vector<MergeModel> models;
  int32_t base_model = -1;  // index into models; -1: none
  // safetensors' names. Inputs are rounded to `dtype` before they are used ("": brought to the type
  // of all of them, or F32 where theirs differ; FP8 weights count as of their checkpoint's type for
  // plain numbers); outputs are first rounded to that, then to `out_dtype` ("": left at that).
  std::string dtype;
  std::string out_dtype;
  uint64_t seed = 0;                 // of the random masks of dare_*
  std::vector<TensorMerge> tensors;  // all of the merged model's, in the order of use
  std::vector<VocabularyMap> vocabularies;
  ModelConfig config;       // of the merged model
  std::string config_json;  // its config.json
  // Index into `models` of the one whose tokenizer files the merged model takes.
  int32_t tokenizer_model = 0;
  std::string chat_template;  // Jinja, the recipe's own; empty: as the tokenizer files have it
  std::vector<std::string> warnings;  // what is odd but no error, for the log
};

}  // namespace marcoro
