"""Writes reference_cases.json: what transformers' LlamaTokenizer and sentencepiece make of texts.

Run with transformers 4.57 and sentencepiece installed; the tests need only what it wrote.

    python3 make_reference_cases.py ../../../data/tokenizer/tokenizer.model
"""

import json
import pathlib
import random
import shutil
import sys
import tempfile

import transformers
from transformers import LlamaTokenizer

HERE = pathlib.Path(__file__).parent


def token(content, **flags):
    base = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    return {"content": content, **base, **flags}


BASE = {"0": token("<unk>"), "1": token("<s>"), "2": token("</s>")}
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHATML = {**BASE, "1024": token("<|im_start|>"), "1025": token("<|im_end|>")}
FLAGS = {
    **BASE,
    "1024": token("<left>", lstrip=True),
    "1025": token("<right>", rstrip=True),
    "1026": token("<both>", lstrip=True, rstrip=True),
    "1027": token("word", single_word=True, special=False),
    "1028": token("<tool", special=False),
    "1029": token("<tool>", special=False),
    "1030": token("日本", special=False),
}

# Each is the set of files beside tokenizer.model.
TOKENIZERS = {
    "no files": {},
    "legacy is null": {"tokenizer_config.json": {**NAMES, "legacy": None}},
    "adds eos": {"tokenizer_config.json": {**NAMES, "add_bos_token": False, "add_eos_token": True}},
    "chatml legacy": {
        "tokenizer_config.json": {
            **NAMES,
            "eos_token": "<|im_end|>",
            "legacy": True,
            "added_tokens_decoder": CHATML,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        }
    },
    "chatml": {
        "tokenizer_config.json": {
            **NAMES,
            "eos_token": {"__type": "AddedToken", **token("<|im_end|>")},
            "legacy": False,
            "added_tokens_decoder": CHATML,
        }
    },
    "chatml in older files": {
        "tokenizer_config.json": {**NAMES, "legacy": False},
        "special_tokens_map.json": {
            "bos_token": "<s>",
            "eos_token": token("<|im_end|>"),
            "unk_token": "<unk>",
            "additional_special_tokens": ["<|im_start|>"],
        },
        "added_tokens.json": {"<|im_start|>": 1024, "<|im_end|>": 1025, "<think>": 1026},
    },
    "flags legacy": {
        "tokenizer_config.json": {**NAMES, "legacy": True, "added_tokens_decoder": FLAGS}
    },
    "flags": {"tokenizer_config.json": {**NAMES, "legacy": False, "added_tokens_decoder": FLAGS}},
    "no prefix space": {
        "tokenizer_config.json": {
            **NAMES,
            "legacy": False,
            "add_prefix_space": False,
            "added_tokens_decoder": BASE,
        }
    },
}

TEXTS = [
    "",
    " ",
    "▁",
    " ▁ ",
    "a",
    " a",
    "  a  ",
    "<s>",
    " <s>",
    "<s> ",
    "<s> <s>",
    "<s><s>",
    "</s>\n",
    "\n</s>",
    "a<s>",
    "a <s> b",
    "<s>a",
    "<s> a",
    "<s>  a",
    "▁<s>",
    "<s>▁a",
    "</s></s>",
    "<unk>",
    "a<unk>b",
    "< s>",
    "<s",
    "<s<s>",
    "</s",
    "<</s>>",
    "\x00",
    "a\x00</s>\x00b",
    "\x7f\x01\x1f",
    "\u0085a\u00a0</s>\u3000b",
    "日本<s>語",
    "👩‍👩‍👧‍👦</s>🏳️‍🌈",
    "e\u0301<s>é",
    "<|im_start|>",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    " <|im_start|> system <|im_end|> ",
    "<|im_start|><|im_end|>",
    "x<|im_end|>y",
    "<|im_end|",
    "<think>a</think>",
    "a <left> b",
    "a  <left>b",
    "<left>",
    "  <left>",
    "<left> <left>",
    "a <right> b",
    "a<right>  b",
    "<right>\u3000\u2003b",
    "a <both> b",
    "<both> <both>",
    "<s> <both> <s>",
    " \n<both>\t ",
    "word",
    " word ",
    "a word b",
    "aword b",
    "a wordb",
    "word word",
    "wordword",
    "word<s>",
    "<s>word",
    "<right> word",
    "<both>word<both>",
    "word ",
    "\nword\n",
    "<tool",
    "<tool>",
    "<tool><tool",
    "a<toolb>",
    "<tool>>",
    "日本",
    "日本語",
    " 日本 ",
    "日日本本",
    "{'a': [1, 2.5e-3, null]}",
    "http://example.com/?q=a%20b&c=d#e",
    "def f(x):\n\treturn x  # <s>\n",
    "مرحبا <s> שלום",
    "Ｆｕｌｌ ｗｉｄｔｈ",
    "\u202eabc\u202c",
    "\U0010ffff\ufffd\ue000",
    "\u2028\u2029",
]


def random_texts(count):
    rng = random.Random(20240607)
    atoms = [
        "a",
        "the",
        "ing",
        " ",
        "  ",
        "\n",
        "▁",
        "<s>",
        "</s>",
        "<unk>",
        "<|im_start|>",
        "<|im_end|>",
        "<left>",
        "<right>",
        "<both>",
        "word",
        "<tool",
        "<tool>",
        "日本",
        "é",
        "😀",
        "\x00",
        "\u3000",
        "<",
        ">",
        "s",
        "0",
        "Z",
    ]
    return ["".join(rng.choice(atoms) for _ in range(rng.randint(1, 12))) for _ in range(count)]


def decodings(model, count):
    """Sequences without <unk>, which sentencepiece writes as a sign of its own."""
    rng = random.Random(7)
    kinds = [range(1, 1024), range(3, 259), range(131, 259), [1, 2], [259, 938, 261, 267]]
    cases = []
    for _ in range(count):
        ids = [rng.choice(rng.choice(kinds)) for _ in range(rng.randint(0, 14))]
        cases.append({"ids": ids, "text": model.decode(ids)})
    for text in ["😀 é", "日本", "\ufffd", "\U0010ffff"]:
        raw = [3 + b for b in text.encode()]
        for cut in range(len(raw) + 1):
            for ids in (raw[:cut], raw[cut:], raw[:cut] + [261] + raw[cut:]):
                cases.append({"ids": ids, "text": model.decode(ids)})
    for sick in [
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe2\x82",
        b"\xf0\x9f\x98",
        b"\x80",
        b"\xff\xfea",
        b"\xe0\x9f\xbf",
        b"\xf0\x8f\xbf\xbf",
        b"\xe2\xe2\x82\xac",
        b"\xf5\x80\x80\x80",
    ]:
        ids = [3 + b for b in sick]
        cases.append({"ids": ids, "text": model.decode(ids)})
        cases.append({"ids": ids + [280], "text": model.decode(ids + [280])})
    return cases


def main():
    result = {
        "reference": f"transformers {transformers.__version__} LlamaTokenizer (slow)",
        "tokenizers": [],
    }
    texts = TEXTS + random_texts(60)
    for name, files in TOKENIZERS.items():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(sys.argv[1], folder + "/tokenizer.model")
            for file, content in files.items():
                pathlib.Path(folder, file).write_text(json.dumps(content))
            tokenizer = LlamaTokenizer.from_pretrained(folder)
            cases = []
            for text in texts:
                as_text = tokenizer.tokenize(text, split_special_tokens=True)
                cases.append(
                    [
                        text,
                        tokenizer.encode(text),
                        tokenizer.convert_tokens_to_ids(as_text),
                    ]
                )
            result["tokenizers"].append({"name": name, "files": files, "cases": cases})
            if name == "no files":
                result["decodings"] = decodings(tokenizer.sp_model, 300)
    with open(HERE / "reference_cases.json", "w") as out:
        json.dump(result, out, ensure_ascii=True, separators=(",", ":"))


main()
