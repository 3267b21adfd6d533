"""Fills in the cases of reference_chats.json: what transformers renders of each template in it.

The templates are in the forms in which model hubs carry them; "family" is what each is to be
recognised as, null for an unknown one. To add a template, add an entry with an empty list of cases
and run this with transformers 4.57 and jinja2 installed. The tests need only what it wrote.
"""

import json
import pathlib

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).parent

USER = {"role": "user", "content": "1+1?"}
ANSWER = {"role": "assistant", "content": " 2 "}
SYSTEM = {"role": "system", "content": "Be brief. "}
CONVERSATIONS = [
    [USER],
    [USER, ANSWER, {"role": "user", "content": " </s> <|im_end|>\n"}],
    [SYSTEM, USER],
    [SYSTEM, USER, ANSWER, USER, ANSWER],
    [USER, USER],
    [USER, SYSTEM],
    [USER, {"role": "tool", "content": "x"}],
    [ANSWER],
    [{"role": "user", "content": ""}],
]
# Whether it treats a role that it does not know like another one is not promised.
FOREIGN_ROLE_UNPROMISED = {"chatml by role"}


def render(template, messages, prompt):
    case = {"messages": messages, "add_generation_prompt": prompt}
    try:
        texts, _ = render_jinja_template(
            conversations=[messages],
            chat_template=template["jinja"],
            add_generation_prompt=prompt,
            bos_token="<s>",
            eos_token="</s>",
        )
        case["text"] = texts[0]
    except jinja2.exceptions.TemplateError as error:
        case["error"] = error.message
    return case


def main():
    file = HERE / "reference_chats.json"
    reference = json.loads(file.read_text())
    for template in reference["templates"]:
        template["cases"] = []
        for messages in CONVERSATIONS if template["family"] else []:
            foreign = any(message["role"] == "tool" for message in messages)
            if foreign and template["name"] in FOREIGN_ROLE_UNPROMISED:
                continue
            template["cases"] += [render(template, messages, prompt) for prompt in (True, False)]
    file.write_text(json.dumps(reference, indent=1))


main()
