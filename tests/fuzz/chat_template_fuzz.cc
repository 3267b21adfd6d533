// Input, with zero bytes between: the Jinja text of a chat template and the contents of two
// messages.
#include "coordinator/text/chat_template.h"
#include "tests/fuzz/input.h"

namespace marcoro {

void FuzzOne(absl::string_view input) {
  const std::vector<std::string> parts = Parts(input, 3);
  const auto chat = ChatTemplate::Recognize(parts[0]);
  if (!chat.ok()) return;
  const std::vector<ChatMessage> messages = {
      {"system", parts[1]}, {"user", parts[2]}, {"assistant", parts[1]}, {"user", parts[2]}};
  for (size_t count = 0; count <= messages.size(); ++count) {
    const auto rendered = chat->Render(absl::MakeConstSpan(messages).first(count),
                                       /*add_generation_prompt=*/count % 2 == 0, "<s>", "</s>");
    if (!rendered.ok()) continue;
    size_t end = 0;
    for (const ByteRange& range : rendered->literal_ranges) {
      MARCORO_CHECK(range.begin >= end && range.end >= range.begin);
      end = range.end;
    }
    MARCORO_CHECK(end <= rendered->text.size());
  }
}

}  // namespace marcoro
