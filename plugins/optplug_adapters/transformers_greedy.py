"""The GreedyLR of transformers as a scheduler of torch, which Lightning requires."""

from torch.optim.lr_scheduler import LRScheduler
from transformers.optimization import GreedyLR as _GreedyLR


class GreedyLR(_GreedyLR, LRScheduler):  # type: ignore[misc]  # transformers may not be installed
    """`transformers.optimization.GreedyLR`, which overrides all methods of LRScheduler that a training calls."""
