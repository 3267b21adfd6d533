#!/usr/bin/env python3
"""Makes the fuzz targets' first inputs out of tests/data: seeds.py OUTPUT writes OUTPUT/TARGET/…

The first lines of each target's source say what its input is.
"""

import hashlib
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
MESSAGES = (("system", "Be brief."), ("user", "hi"), ("assistant", "Hello."), ("user", "<s>[INST] é"))
# As text, which protoc turns into what a client sends.
REQUESTS = {
    "g": ("GenerateRequest", (
        'prompt: "Return the" max_tokens: 20',
        'token_ids { ids: 1 ids: 300 } temperature: 0.7 top_k: 50 top_p: 0.95 min_p: 0.05 typical_p: 0.9 seed: 7 n: 3',
        'chat { messages { role: "user" content: "hi" } } stop: "\\n" stop: "</s>" include_stop: true echo: true',
        'prompt: "a</s>b" parse_special_tokens: false add_bos: false logprobs: 5 prompt_logprobs: 2 ignore_eos: true',
        'prompt: "x" repetition_penalty: 1.1 presence_penalty: 0.5 frequency_penalty: -0.5 logit_bias { key: 5 value: -100 }',
        'prompt: "x" allowed_token_ids: 7 allowed_token_ids: 9 bad_words: "value" stop_token_ids: 12 min_tokens: 2 priority: 3',
    )),
    "s": ("ScoreRequest", ('prompt: "The quick brown fox" top: 3', "token_ids { ids: 5 ids: 6 }")),
    "t": ("TokenizeRequest", ('prompt: "The quick brown fox"', 'chat { messages { role: "user" content: "hi" } }')),
    "d": ("DetokenizeRequest", ("token_ids: 462 token_ids: 266",)),
}


def read(path):
    return path.read_bytes() if path.exists() else b""


def chat_templates():
    templates = json.loads(read(DATA / "chat_cases.json"))["templates"].values()
    return ["\0".join((template, MESSAGES[0][1], MESSAGES[3][1])).encode() for template in templates]


def requests():
    for letter, (message, texts) in REQUESTS.items():
        for text in texts:
            command = ["protoc", f"--proto_path={ROOT}/proto", f"--encode=marcoro.v1.{message}", "marcoro/v1/inference.proto"]
            yield letter.encode() + subprocess.run(command, input=text.encode(), check=True, capture_output=True).stdout


def headers():
    for path in sorted(DATA.rglob("*.safetensors")):
        data = read(path)
        end = 8 + int.from_bytes(data[:8], "little")
        # Large headers say nothing that small ones do not, and are slow.
        if end < 8000:
            yield f"{len(data) - end}\n".encode() + data[8:end]


def checkpoints():
    return sorted(path.parent for path in DATA.rglob("config.json"))


def tokens(folder):
    """A tokenizer.json and an added_tokens.json that name the first pieces of tokenizer_config.json."""
    content = {"1": "<s>", "32000": "<|im_end|>"}
    added = [{"id": int(i), "content": text, "special": True} for i, text in content.items()]
    vocabulary = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>", "a", "b"])}
    return (read(folder / "tokenizer_config.json"), json.dumps({text: int(i) for i, text in content.items()}).encode(),
            json.dumps({"added_tokens": added, "model": {"type": "BPE", "vocab": vocabulary}}).encode())


def tokenizer_files():
    config, added, tokenizer = tokens(DATA / "tiny")
    names = b'{"bos_token": "<s>", "eos_token": {"content": "</s>", "rstrip": true}, "additional_special_tokens": ["<|x|>"]}'
    text = b"Return </s> the <|im_end|> value"
    return [b"\0".join((config, names, added, tokenizer, text)), b"\0".join((b"", names, added, tokenizer, text))]


def vocabularies():
    config, added, tokenizer = tokens(DATA / "tiny")
    # A sentencepiece model is a sequence of pieces: of two bytes, their length, and so many.
    model = read(DATA / "tiny/tokenizer.model")
    end = 0
    for _ in range(10):
        end += 2 + model[end + 1]
    return [b"\0".join((config, added, b"", model[:end])), b"\0".join((config, b"", tokenizer, b""))]


def urls():
    for url, location in (("https://hub.example:8443/a/b?c=d", "/e"), ("http://[::1]:80/", "https://hub.example/f%20g"),
                          ("https://hub.example", "//other.example/x"), ("https://user@hub.example/a", "../b#c")):
        yield f"{url}\0{location}".encode()


SEEDS = {
    "chat_template": chat_templates,
    "generate_request": requests,
    "model_config": lambda: {b"\0".join((read(c / "config.json"), read(c / "hf_quant_config.json"))) for c in checkpoints()},
    "model_files": lambda: {b"\0".join((read(c / "config.json"), read(c / "generation_config.json"), b"---\nlicense: apache-2.0\n---\n"))
                            for c in checkpoints()},
    "recipe": lambda: [read(path) for path in DATA.rglob("*.yml")],
    "safetensors_header": headers,
    "tokenizer_files": tokenizer_files,
    "tokenizer_model": lambda: [b"Return the caf\xc3\xa9\n\0" + read(DATA / "tokenizer/tokenizer.model")],
    "url": urls,
    "vocabulary": vocabularies,
}


def main(output):
    for target, seeds in SEEDS.items():
        folder = pathlib.Path(output) / target
        folder.mkdir(parents=True, exist_ok=True)
        for seed in seeds():
            (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


if __name__ == "__main__":
    main(sys.argv[1])
