#include "worker/weights/merge/recipe_chat_template.h"

#include <map>
#include <string_view>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "worker/weights/describe.h"
#include "worker/weights/merge/known_names.h"

namespace marcoro {
namespace {

constexpr std::string_view kAlternate =
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}";

// The formats that a server here knows, in Jinja as it and others read it.
std::map<std::string_view, std::string> NamedTemplates() {
  const std::string alternate(kAlternate);
  return {
      {"alpaca",
       "{% for message in messages %}"
       "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
       "{% elif message['role'] == 'user' %}"
       "{{ '### Instruction:\\n\\n' + message['content'] + '\\n\\n' }}"
       "{% else %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}"
       "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"},
      {"chatml",
       "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
       "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
       "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"},
      {"mistral", "{{ bos_token }}{% for message in messages %}" + alternate +
                      "{% if message['role'] == 'user' %}"
                      "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
                      "{% elif message['role'] == 'assistant' %}"
                      "{{ message['content'] + eos_token + ' ' }}"
                      "{% else %}{{ raise_exception('Only user and assistant roles are "
                      "supported!') }}{% endif %}{% endfor %}"},
      {"llama2",
       "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
       "{% set system_message = messages[0]['content'] %}"
       "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
       "{% for message in loop_messages %}" +
           alternate +
           "{% if loop.index0 == 0 and system_message != false %}"
           "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + "
           "message['content'] %}"
           "{% else %}{% set content = message['content'] %}{% endif %}"
           "{% if message['role'] == 'user' %}"
           "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
           "{% elif message['role'] == 'assistant' %}"
           "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"},
  };
}

std::string MostCommonTemplate(const std::vector<std::string>& directories) {
  std::map<std::string, int> counts;
  std::string best;
  std::vector<std::string> texts;
  for (const std::string& directory : directories) {
    absl::StatusOr<CheckpointDescription> description = DescribeCheckpoint(directory);
    if (!description.ok()) continue;
    texts.emplace_back(absl::StripAsciiWhitespace(description->chat_template));
    if (!texts.back().empty()) ++counts[texts.back()];
  }
  for (const std::string& text : texts) {
    if (!text.empty() && (best.empty() || counts[text] > counts[best])) best = text;
  }
  return best;
}

}  // namespace

absl::StatusOr<std::string> RecipeChatTemplate(const Recipe& recipe,
                                               const std::vector<std::string>& directories) {
  if (!recipe.chat_template.has_value()) return std::string();
  const std::string& text = recipe.chat_template->text;
  if (text == "auto") return MostCommonTemplate(directories);
  const std::map<std::string_view, std::string> named = NamedTemplates();
  if (const auto found = named.find(text); found != named.end()) return found->second;
  if (text.find('{') != std::string::npos) return text;
  std::vector<std::string_view> known = {"auto"};
  for (const auto& [name, jinja] : named) known.push_back(name);
  return ErrorAt(recipe.file, recipe.chat_template->position,
                 absl::StrCat("unknown chat_template ", Quoted(text), ", and no Jinja text ",
                              KnownNames(text, known)));
}

}  // namespace marcoro
