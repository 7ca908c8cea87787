"""The MiniLM sentence encoder as a plain PyTorch module, and its weights.

Written out here so that this example needs neither the transformers package nor its version. The attributes are
named as the weights are in the file, so that they load without a table of names.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 30522
POSITIONS = 512
WIDTH = 384
HEADS = 12
LAYERS = 6
LAYER_NORM_EPSILON = 1e-12


class Embeddings(nn.Module):
    """A token's vector: its word, its position and its segment (always the first) added up."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, LAYER_NORM_EPSILON)

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: input_ids.shape[1]]
        segment = self.token_type_embeddings.weight[0]
        return self.LayerNorm(self.word_embeddings(input_ids) + positions + segment)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, is_token: Tensor) -> Tensor:
        query, key, value = (_heads(part(hidden)) for part in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=is_token)
        return mixed.transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """A projection that is added to what came in before, and normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, LAYER_NORM_EPSILON)

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(hidden) + before)


class Layer(nn.Module):
    """One transformer layer: attention, then two projections for each token by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(), "output": Residual(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, 4 * WIDTH)})
        self.output = Residual(4 * WIDTH)

    def forward(self, hidden: Tensor, is_token: Tensor) -> Tensor:
        attended = self.attention["output"](self.attention["self"](hidden, is_token), hidden)
        return self.output(functional.gelu(self.intermediate["dense"](attended)), attended)


class MiniLm(nn.Module):
    """Token ids and the mask of real tokens, both [batch, tokens], to a vector for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        is_token = attention_mask.bool()[:, None, None, :]
        hidden = self.embeddings(input_ids)
        for layer in self.encoder["layer"]:
            hidden = layer(hidden, is_token)
        return hidden


def load_minilm(weights: Path) -> MiniLm:
    """The model with the weights of a .safetensors file."""
    tensors = load_file(weights)
    # Left out: positions that are only 0, 1, 2, .., and a layer over the first token, which sentences do not use.
    wanted = {
        name: value
        for name, value in tensors.items()
        if not name.startswith(("embeddings.position_ids", "pooler."))
    }
    model = MiniLm()
    model.load_state_dict(wanted)
    return model.eval()


def embed(model: MiniLm, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The whole pipeline in PyTorch: the mean over each sentence's tokens, at length 1."""
    with torch.inference_mode():
        tokens = model(input_ids, attention_mask)
        mask = attention_mask[..., None].to(tokens.dtype)
        return functional.normalize((tokens * mask).sum(1) / mask.sum(1))


def _heads(vectors: Tensor) -> Tensor:
    return vectors.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)
