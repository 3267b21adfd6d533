// The weights' part of the numerics fingerprint: which numbers a group computes with, told apart
// cheaply.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "worker/model/config.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

// SHA-256, in hexadecimal, over
//   - the config values that enter the arithmetic: shapes, window, rope_theta, epsilon, tied
//   embeddings;
//   - for each tensor of the model, in the order of use: name, stored type, shape, and what
//   TensorSource::HashContents adds (a
//     checkpoint: samples of the stored bytes; random weights: the seed).
// It is the same on every rank, at every tensor-parallel degree and however the tensors are spread
// over files. Sampling means that a checkpoint edited in a few numbers by hand may keep its
// identity; fine-tuning, merging or quantizing changes it.
absl::StatusOr<std::string> WeightsIdentity(TensorSource& source, const ModelConfig& config);

}  // namespace marcoro
