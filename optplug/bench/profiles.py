"""Profiles: the parameter shapes on which steps are measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from optplug.errors import ConfigError, suggest


@dataclass(frozen=True)
class Profile:
    """A named list of parameter shapes."""

    name: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def elements(self) -> int:
        """The number of elements of all parameters together."""
        return sum(map(math.prod, self.shapes))

    def __str__(self) -> str:
        tensors = len(self.shapes)
        return f"{self.name}: {tensors:,} {'tensor' if tensors == 1 else 'tensors'}, {self.elements:,} elements"


def _resnet50() -> tuple[tuple[int, ...], ...]:
    """Return the shapes of ResNet-50: 161 tensors, 25.6 million elements.

    He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, 2016.
    """
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for outputs, inputs, kernel in ((width, channels, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(outputs, inputs, kernel, kernel), (outputs,), (outputs,)]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return (*shapes, (1000, 2048), (1000,))


def _gpt2() -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the smallest GPT-2: 148 tensors, 124 million elements.

    Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
    """
    width = 768
    norm = [(width,), (width,)]
    attention = [(3 * width, width), (3 * width,), (width, width), (width,)]
    perceptron = [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    block = [*norm, *attention, *norm, *perceptron]
    return ((50257, width), (1024, width), *(12 * block), *norm)


PROFILES = {
    p.name: p
    for p in (
        Profile("tiny", ((256,),) * 1000),
        Profile("resnet50", _resnet50()),
        Profile("gpt2", _gpt2()),
        Profile("one", ((64_000_000,),)),
    )
}


def get_profile(name: str) -> Profile:
    """Return the profile of a name.

    Raises:
        ConfigError: no profile has this name; the message has similar names, or all names.
    """
    found = PROFILES.get(name.lower())
    if found is None:
        raise ConfigError(f"no profile named {name!r}{suggest(name, PROFILES, intro='there are')}")
    return found
