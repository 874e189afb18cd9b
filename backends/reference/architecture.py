"""What shapes do the reference models have, and how do they compute in training?

The Llama architecture (RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embeddings),
written out in plain torch with the parameter names of Hugging Face's `LlamaForCausalLM`, so that the state
goes to safetensors as it is and vLLM serves it. Serving and sampling are vLLM's job and not here.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD_SIZE: Final = 32
"""vLLM's CPU attention has no kernel for 24 (0.32: "Unsupported CPU attention configuration"); 32 works."""

ROPE_THETA: Final = 10_000.0
NORM_EPSILON: Final = 1e-5
MAX_POSITIONS: Final = 2048


@dataclass(frozen=True)
class Shape:
    """The sizes of one model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int = 2048


TARGET: Final = Shape(hidden=256, layers=6, heads=8, kv_heads=4, mlp=768)
DRAFT: Final = Shape(hidden=128, layers=2, heads=4, kv_heads=2, mlp=384)


def rotary_tables(length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each `(length, HEAD_SIZE) float32`."""
    frequencies = ROPE_THETA ** (-torch.arange(0, HEAD_SIZE, 2, dtype=torch.float32) / HEAD_SIZE)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    doubled = torch.cat([angles, angles], dim=-1)
    return doubled.cos(), doubled.sin()


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cosines + turned * sines


class Attention(nn.Module):  # type: ignore[misc]  # torch is not installed where mypy runs
    """Causal self-attention with rotary positions and shared key-value heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.q_proj = nn.Linear(shape.hidden, shape.heads * HEAD_SIZE, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * HEAD_SIZE, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * HEAD_SIZE, bias=False)
        self.o_proj = nn.Linear(shape.heads * HEAD_SIZE, shape.hidden, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Attend; `x` is `(batch, length, hidden)`."""
        batch, length, _ = x.shape
        q, k, v = (
            project(x).view(batch, length, -1, HEAD_SIZE).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = functional.scaled_dot_product_attention(
            _rotate(q, cosines, sines), _rotate(k, cosines, sines), v, is_causal=True, enable_gqa=True
        )
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):  # type: ignore[misc]
    """SwiGLU feed-forward block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position by itself."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):  # type: ignore[misc]
    """One transformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=NORM_EPSILON)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=NORM_EPSILON)
        self.mlp = MLP(shape)
        # Zero outputs make a new layer the identity: a layer may be added in mid-training without a jump.
        nn.init.zeros_(self.self_attn.o_proj.weight)
        nn.init.zeros_(self.mlp.down_proj.weight)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Add attention, then the feed-forward block."""
        x = x + self.self_attn(self.input_layernorm(x), cosines, sines)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):  # type: ignore[misc]
    """The model; call it for the hidden states, `logits` for the scores of chosen positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=NORM_EPSILON)
        cosines, sines = rotary_tables(MAX_POSITIONS)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states after the last norm, `(batch, length, hidden)`."""
        length = ids.shape[1]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.cosines[:length], self.sines[:length])
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary; the output matrix is the embedding (tied)."""
        return functional.linear(hidden, self.embed_tokens.weight)

    def parameter_count(self) -> int:
        """Number of trained values, the tied matrix counted once."""
        return sum(parameter.numel() for parameter in self.parameters())


def state_of(model: Llama) -> dict[str, Tensor]:
    """The weights under the names that Hugging Face's Llama uses."""
    return {f"model.{name}": value.detach() for name, value in model.state_dict().items()}


def config_of(shape: Shape, *, end_id: int, pad_id: int) -> dict[str, Any]:
    """The `config.json` of a model of this shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": HEAD_SIZE,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": MAX_POSITIONS,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPSILON,
        "rope_theta": ROPE_THETA,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": end_id,
        "pad_token_id": pad_id,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
