"""A small transformer that predicts characters: Muon in one line against AdamW at its default.

    python benchmarks/muon_accuracy.py [--seeds 5] [--steps 150]

The text is made of the docstrings of modules of Python's standard library. Nothing is downloaded. Its last tenth is for
validation. Both optimizers start from the same parameters and see the same batches. The loss is the cross-entropy of
the next character, in nats, after the last step.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import optplug

MODULES = ("argparse", "calendar", "difflib", "doctest", "fractions", "heapq", "optparse", "statistics", "tarfile")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "`optimizer: adamw`": {"name": "adamw"},
    "`optimizer: {name: muon, lr: 0.02}`": {"name": "muon", "lr": 0.02},
}
CONTEXT = 32
BATCH = 16
WIDTH = 64


def characters() -> Tensor:
    """The text as indices of its characters."""
    text = "\n".join(_docstrings(name) for name in MODULES)
    text = "".join(c for c in text if c == "\n" or " " <= c <= "~")
    alphabet = sorted(set(text))
    return torch.tensor([alphabet.index(c) for c in text])


def _docstrings(name: str) -> str:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    nodes = ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    documented = [n for n in nodes if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    return "\n".join(filter(None, map(ast.get_docstring, documented)))


class Transformer(nn.Module):
    """Two layers of causal attention."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(characters, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.body(self.tokens(x) + self.positions.weight[: x.shape[1]], mask=mask, is_causal=True))


def loss_of(model: Transformer, text: Tensor, starts: Tensor) -> Tensor:
    windows = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def train(optimizer: dict[str, Any], text: Tensor, seed: int, steps: int) -> float:
    """Train from a seed, and return the loss on the text for validation."""
    torch.manual_seed(seed)
    model = Transformer(int(text.max()) + 1)
    name, arguments = optimizer["name"], {key: value for key, value in optimizer.items() if key != "name"}
    made = optplug.create_optimizer(name, model, **arguments)
    training, validation = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    batches = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(training) - CONTEXT, (BATCH,), generator=batches)
        made.zero_grad()
        loss_of(model, training, starts).backward()
        made.step()
    with torch.no_grad():
        return loss_of(model, validation, torch.arange(0, len(validation) - CONTEXT, CONTEXT)).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    text = characters()
    print(f"{len(text):,} characters, {int(text.max()) + 1} different ones; {arguments.steps} steps\n")
    print("| optimizer | validation loss | of single seeds |")
    print("|---|---|---|")
    for title, optimizer in OPTIMIZERS.items():
        losses = [train(optimizer, text, seed, arguments.steps) for seed in range(arguments.seeds)]
        singles = ", ".join(f"{loss:.3f}" for loss in losses)
        print(f"| {title} | {sum(losses) / len(losses):.3f} | {singles} |", flush=True)


if __name__ == "__main__":
    main()
