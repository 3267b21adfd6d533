"""Writes merged.safetensors: what merges of the FP8 checkpoints beside it must be.

Formats are read as their descriptions say (code times scale in float32, rounded to the dtype of the
merge), methods are mergekit's, in PyTorch. Needs torch and safetensors:

    python3 tests/data/quantized/make_merged.py

To stay small, every STRIDE-th row of each linear weight is kept.
"""

import math
import pathlib

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent
STRIDE = 29
FORMATS = [
    "autofp8_dynamic",
    "autofp8_static",
    "compressed_tensors_channel",
    "compressed_tensors_tensor",
    "fp8_block",
    "modelopt_fp8",
    "modelopt_hf_quant_config",
]
T = 0.35  # of slerp
WEIGHTS = [0.25 + 0.125 * i for i in range(len(FORMATS) + 1)]  # of linear; BF16 has the last


def stored(name: str) -> dict[str, torch.Tensor]:
    with safe_open(FOLDER / name / "model.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def dequantized(name: str) -> dict[str, torch.Tensor]:
    """The linear weights in BF16, and what was never quantized."""
    tensors = stored(name)
    result = {}
    for key, value in tensors.items():
        if key.endswith(("_scale", "_scale_inv")):
            continue
        if value.dtype == torch.float8_e4m3fn:
            rows, columns = value.shape
            scale = tensors.get(key + "_scale", tensors.get(key + "_scale_inv")).float()
            if key + "_scale_inv" in tensors:
                scale = scale.repeat_interleave(128, 0)[:rows]
                scale = scale.repeat_interleave(128, 1)[:, :columns]
            elif scale.numel() > 1:
                scale = scale.reshape(rows, 1)
            value = value.float() * scale
        result[key] = value.to(torch.bfloat16)
    return result


def slerp(t: float, base: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    v0, v1 = base.float().double(), other.float().double()
    dot = torch.sum(v0 / v0.norm() * (v1 / v1.norm())).item()
    if abs(dot) > 0.9995:
        merged = (1 - t) * v0 + t * v1
    else:
        theta = math.acos(dot)
        merged = math.sin((1 - t) * theta) / math.sin(theta) * v0
        merged += math.sin(t * theta) / math.sin(theta) * v1
    return merged.float().to(torch.bfloat16)


def linear(weights: list[float], inputs: list[torch.Tensor]) -> torch.Tensor:
    total = sum(weight * value.double() for weight, value in zip(weights, inputs))
    return (total.float().to(torch.bfloat16) / sum(weights)).to(torch.bfloat16)


def main() -> None:
    plain = dequantized("bf16")
    parents = {name: dequantized(name) for name in FORMATS}
    names = [key for key in plain if key.endswith("_proj.weight")]
    merged = {}
    for key in names:
        # The second parent of slerp: the plain one with its rows moved on by one, so that the two
        # are far from parallel.
        moved = torch.roll(plain[key], 1, 0)
        for name in FORMATS:
            merged[f"{name}/slerp/{key}"] = slerp(T, parents[name][key], moved)
            merged[f"{name}/nearly_parallel/{key}"] = slerp(T, parents[name][key], plain[key])
            merged[f"{name}/passthrough/{key}"] = parents[name][key]
        inputs = [parents[name][key] for name in FORMATS] + [plain[key]]
        merged[f"all/linear/{key}"] = linear(WEIGHTS, inputs)
    rows = {key: value[::STRIDE].contiguous() for key, value in merged.items()}
    save_file(rows, FOLDER / "merged.safetensors")


main()
