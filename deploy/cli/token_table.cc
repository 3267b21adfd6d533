#include "deploy/cli/token_table.h"

#include <google/protobuf/util/json_util.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace marcoro {

std::string Quoted(absl::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += {'\\', c};
    } else if (c == '\n') {
      quoted += "\\n";
    } else if (c == '\t') {
      quoted += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      absl::StrAppendFormat(&quoted, "\\x%02x", byte);
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::string TokenTable(const google::protobuf::RepeatedPtrField<v1::TokenLogprob>& tokens) {
  std::string table = absl::StrFormat("%7s  %-20s %10s\n", "id", "token", "logprob");
  for (const v1::TokenLogprob& token : tokens) {
    const std::string logprob =
        token.has_logprob() ? absl::StrFormat("%.4f", token.logprob()) : "-";
    absl::StrAppendFormat(&table, "%7u  %-20s %10s", token.token_id(), Quoted(token.token()),
                          logprob);
    for (const v1::TokenAlternative& other : token.top()) {
      absl::StrAppendFormat(&table, "  %s %.4f", Quoted(other.token()), other.logprob());
    }
    table += "\n";
  }
  return table;
}

std::string ToJson(const google::protobuf::Message& message, bool indent) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = indent;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string json;
  // Fails for malformed Any and Timestamp fields only; these messages have none.
  if (!google::protobuf::util::MessageToJsonString(message, &json, options).ok()) return "{}";
  if (!indent) json += "\n";
  return json;
}

}  // namespace marcoro
