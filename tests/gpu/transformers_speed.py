"""Tokens per second of HF transformers at batch 1, beside ours of the same run: the model's shape with random BF16 weights, a static cache and
torch.compile.

  transformers_speed.py CONFIG OURS OUTPUT [--device=cpu]

CONFIG is a config.json, OURS the report of `marcoro bench` at batch 1 with the same shape and numbers of tokens, OUTPUT the JSON that is written.
"""

import json
import pathlib
import statistics
import sys
import time

import torch
import transformers

PROMPT_TOKENS = 32
OUTPUT_TOKENS = 192
ROUNDS = 3  # measured ones; compilation takes the ones before

def random_model(config, device):
    """Weights as they are allocated and filled on the device: nothing is read, and 14.5 GB take a second."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    torch.set_default_dtype(torch.float32)
    model.generation_config.cache_implementation = "static"
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def seconds_of(model, prompt, tokens):
    begin = time.perf_counter()
    out = model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    if prompt.is_cuda:
        torch.cuda.synchronize()
    assert out.shape[1] == prompt.shape[1] + tokens
    return time.perf_counter() - begin


def decode_rate(model, prompt):
    """Of all tokens but the first, whose time is that of the prompt."""
    for tokens in (OUTPUT_TOKENS, OUTPUT_TOKENS, 1):
        seconds_of(model, prompt, tokens)
    rates = [(OUTPUT_TOKENS - 1) / (seconds_of(model, prompt, OUTPUT_TOKENS) - seconds_of(model, prompt, 1)) for _ in range(ROUNDS)]
    return statistics.median(rates)


def main(config_path, ours_path, output_path, device="--device=cuda"):
    device = device.removeprefix("--device=")
    config = transformers.AutoConfig.from_pretrained(pathlib.Path(config_path).parent)
    model = random_model(config, device)
    model.forward = torch.compile(model.forward, mode="reduce-overhead" if device == "cuda" else "default", fullgraph=True)
    prompt = torch.arange(3, 3 + PROMPT_TOKENS, device=device)[None]
    with torch.inference_mode():
        theirs = decode_rate(model, prompt)
    report = json.loads(pathlib.Path(ours_path).read_text(encoding="utf-8"))
    ours = 1 / report["inter_token_seconds"]["mean"]
    result = {"torch": torch.__version__, "transformers": transformers.__version__, "transformers_tokens_per_second": theirs,
              "tokens_per_second": ours, "ratio": ours / theirs}
    pathlib.Path(output_path).write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(f"{ours:.0f} tokens/s, transformers {theirs:.0f}: {ours / theirs:.2f} times (goal 1.75)")


if __name__ == "__main__":
    main(*sys.argv[1:])
