#include "coordinator/text/vocabulary.h"

#include <grpc/support/log.h>

#include <algorithm>

#include "absl/strings/match.h"

namespace marcoro {

Vocabulary::Vocabulary(int32_t size, LeadingSpace leading_space)
    : leading_space_(leading_space), entries_(size) {
  GPR_ASSERT(size >= 0 && size <= kMaxSize);
}

void Vocabulary::Set(int32_t id, TokenKind kind, absl::string_view bytes, bool strippable) {
  GPR_ASSERT(Contains(id));
  Entry& entry = entries_[id];
  entry.offset = static_cast<uint32_t>(arena_.size());
  entry.length = static_cast<uint32_t>(bytes.size());
  entry.kind = kind;
  entry.strippable_space = strippable && absl::StartsWith(bytes, " ");
  arena_.append(bytes.data(), bytes.size());
  longest_token_ = std::max(longest_token_, bytes.size());
}

}  // namespace marcoro
