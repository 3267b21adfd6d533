// Tokens and their log-probabilities as a table.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "marcoro/v1/inference.pb.h"

namespace marcoro {

// One line for each token: id, text (quoted, escaped), log-probability, alternatives.
std::string TokenTable(const google::protobuf::RepeatedPtrField<v1::TokenLogprob>& tokens);

// The text in double quotes, with line breaks, tabs, quotes and control characters escaped.
std::string Quoted(absl::string_view text);

// A message as JSON: field names as in the proto; one line, or indented.
std::string ToJson(const google::protobuf::Message& message, bool indent);

}  // namespace marcoro
