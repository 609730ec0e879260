"""Engines: each engine runs the traced graph of a rule, or the rule itself, on tensors.

This package has the list of engines; `optplug.engines.protocol` describes what an engine is. It contains no optimizer,
no parameter groups and no single rule. The choice of an engine is in `optplug.optim.dispatch`.
"""

from __future__ import annotations

from typing import Literal

from optplug.engines.foreach import ForeachEngine
from optplug.engines.loop import LoopEngine
from optplug.engines.numba import NumbaEngine
from optplug.engines.protocol import EngineProtocol

Engine = Literal["auto", "loop", "foreach", "numba"]
"""The names of engines, for type checkers."""

ENGINES: list[EngineProtocol] = [NumbaEngine(), ForeachEngine(), LoopEngine()]
"""All engines, the fastest first. The last one supports all parameters."""

PLANNED = ("triton",)
"""The names of engines that are not part of this version."""

ENGINE_OF_FOREACH = {True: "foreach", False: "loop"}
"""The engine that torch's argument `foreach` requests."""


def engine_names() -> list[str]:
    """Return the values of `engine=`: `"auto"`, then the engines, the fastest last."""
    return ["auto", *(engine.name for engine in reversed(ENGINES))]


def get_engine(name: str) -> EngineProtocol:
    """Return the engine of a name."""
    return next(engine for engine in ENGINES if engine.name == name)
