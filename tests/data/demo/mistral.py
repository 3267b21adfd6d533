"""The Mistral architecture in plain PyTorch, its files as a hub serves them, and a spherical merge
of two."""

import json
import math

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 24,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 416,
    "max_position_embeddings": 1024,
    "model_type": "mistral",
    "num_attention_heads": 8,
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 1280,
}
HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 192, 8, 4, 24


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class RmsNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x):
        x = x.float()
        return (
            self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + CONFIG["rms_norm_eps"])
        )


def rotate(x, cosine, sine):
    """x (batch, heads, tokens, head_dim): the first half of a head's elements pairs with the
    second."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(
        x.dtype
    )


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = linear(HIDDEN, HEADS * HEAD_DIM)
        self.k_proj = linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.v_proj = linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.o_proj = linear(HEADS * HEAD_DIM, HIDDEN)

    def forward(self, x, cosine, sine):
        heads = lambda y, count: y.view(*y.shape[:2], count, HEAD_DIM).transpose(1, 2)
        query = rotate(heads(self.q_proj(x), HEADS), cosine, sine)
        key = rotate(heads(self.k_proj(x), KV_HEADS), cosine, sine).repeat_interleave(
            HEADS // KV_HEADS, dim=1
        )
        value = heads(self.v_proj(x), KV_HEADS).repeat_interleave(HEADS // KV_HEADS, dim=1)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = linear(HIDDEN, CONFIG["intermediate_size"])
        self.up_proj = linear(HIDDEN, CONFIG["intermediate_size"])
        self.down_proj = linear(CONFIG["intermediate_size"], HIDDEN)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.self_attn = RmsNorm(), Attention()
        self.post_attention_layernorm, self.mlp = RmsNorm(), FeedForward()

    def forward(self, x, cosine, sine):
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine)
        return x + self.mlp(self.post_attention_layernorm(x))


class Mistral(nn.Module):
    """Modules are named as checkpoints name their tensors."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(CONFIG["vocab_size"], HIDDEN)
        self.model.layers = nn.ModuleList(Layer() for _ in range(CONFIG["num_hidden_layers"]))
        self.model.norm = RmsNorm()
        self.lm_head = linear(HIDDEN, CONFIG["vocab_size"])
        residual = 0.02 * math.sqrt(6 / (2 * CONFIG["num_hidden_layers"]))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(
                    parameter, std=residual if "o_proj" in name or "down_proj" in name else 0.04
                )
        # Where copying is the first thing to learn, this is a start.
        self.lm_head.weight.data.copy_(self.model.embed_tokens.weight)

    def forward(self, ids):
        """ids (batch, tokens) → logits (batch, tokens, vocabulary)."""
        frequencies = CONFIG["rope_theta"] ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = torch.outer(torch.arange(ids.shape[1]), frequencies)
        cosine, sine = angles.cos(), angles.sin()
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cosine, sine)
        return self.lm_head(self.model.norm(x))


def save(weights, folder):
    """Weights in BF16 with their config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder):
    """A checkpoint's weights, as stored."""
    return load_file(folder / "model.safetensors")


def model_of(weights):
    model = Mistral()
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.eval()


def slerp(t, base, other):
    """On the sphere from base (t = 0) to other (t = 1), each a whole tensor."""
    flat0, flat1 = base.float().flatten(), other.float().flatten()
    dot = torch.dot(flat0 / flat0.norm(), flat1 / flat1.norm()).item()
    if abs(dot) > 0.9995:
        merged = (1 - t) * flat0 + t * flat1
    else:
        angle = math.acos(dot)
        merged = (math.sin((1 - t) * angle) * flat0 + math.sin(t * angle) * flat1) / math.sin(angle)
    return merged.view_as(base).to(torch.bfloat16)


def merge(base, other, parameters):
    """The recipe's `parameters.t`: the first filter that is part of a tensor's name decides, a list
    is a gradient over the layers."""

    def t_of(name):
        value = next(entry["value"] for entry in parameters["t"] if entry.get("filter", "") in name)
        if not isinstance(value, list):
            return value
        position = int(name.split(".")[2]) / (CONFIG["num_hidden_layers"] - 1) * (len(value) - 1)
        low = int(position)
        high = min(low + 1, len(value) - 1)
        return value[low] + (position - low) * (value[high] - value[low])

    return {name: slerp(t_of(name), base[name], other[name]) for name in base}
