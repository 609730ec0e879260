"""Every error optplug raises: each is an `OptplugError` and also the builtin a caller would expect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar


class OptplugError(Exception):
    """Base of all errors raised by optplug.

    Attributes:
        place: where in a configuration, such as `param_groups[0].lr`; empty where that is not known.
    """

    loc: str = ""


class UnknownNameError(OptplugError, LookupError):
    """No installed plugin offers this name."""


class AmbiguousNameError(OptplugError, LookupError):
    """Two plugins offer this name; `plugin:name` settles it."""


class PluginError(OptplugError, RuntimeError):
    """A plugin raised, or offers something that is not what it says."""


class SpecError(OptplugError, ValueError):
    """A plugin's spec is malformed."""


class ConfigError(OptplugError, ValueError):
    """A configuration has a wrong key, value or combination."""


class ConfigTypeError(OptplugError, TypeError):
    """A configuration value, or an argument, has the wrong type."""


class ConfigErrors(ConfigError):  # noqa: N818  # it is several
    """Several things are wrong with a configuration.

    Attributes:
        errors: one for each, in the order of the configuration, with its `loc`.
    """

    def __init__(self, errors: Sequence[OptplugError]) -> None:
        self.errors = tuple(errors)
        lines = "".join(f"\n  {error}" for error in self.errors)
        super().__init__(f"{len(self.errors)} things are wrong with the configuration:{lines}")

    def __reduce__(self) -> tuple[type, tuple[Sequence[OptplugError]]]:
        return type(self), (self.errors,)


class HyperparameterError(OptplugError, ValueError):
    """A hyperparameter is out of its range."""


class HyperparameterTypeError(OptplugError, TypeError):
    """A hyperparameter has the wrong type."""


class ParameterError(OptplugError, ValueError):
    """The parameters to optimize are not what an optimizer can take."""


class LineSearchError(HyperparameterError, RuntimeError):
    """There is no line search of this name."""


class RuleError(OptplugError, TypeError):
    """An update rule does something a rule cannot do."""


class BranchingError(RuleError):
    """An update rule branches on an element-wise value, which has no one truth."""


class EngineError(OptplugError, RuntimeError):
    """The engine that was asked for cannot step these parameters."""


class RecordingError(EngineError, AssertionError):
    """A step cannot be recorded as it is asked to be: by autograd, or in a device's graph."""


class MissingLightningError(OptplugError, ImportError):
    """Lightning is not installed, and this serves nothing else."""


class SparseGradientError(OptplugError, RuntimeError):
    """A gradient is sparse and the optimizer takes dense ones only."""


class WiringError(OptplugError, RuntimeError):
    """The trainer, module and configuration do not fit together."""


Error = TypeVar("Error", bound=OptplugError)


def with_loc(loc: str, error: Error) -> Error:
    """The error, with its place; whoever gathers it puts the place before the message."""
    error.loc = loc
    return error


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known words that are near to a word, the nearest first."""
    import difflib  # only failing paths pay for it

    lowered = {k.lower(): k for k in known}
    text = str(word).lower()
    # A word that contains the other is nearer than one that only looks alike.
    inside = [k for k in lowered if min(len(text), len(k)) > 3 and (text in k or k in text)]
    # `lr` looks like none of the words it stands for.
    near = [k for k in lowered if len(k) > 1 and k == "".join(part[:1] for part in text.split("_"))]
    near += difflib.get_close_matches(text, inside, n=3, cutoff=0)
    near += [k for k in difflib.get_close_matches(text, lowered, n=3, cutoff=0.6) if k not in near]
    return [lowered[k] for k in near[:3]]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'adam', 'adamw'?"`, or nothing when no known word is near."""
    near = nearest(word, known)
    return f"; did you mean {', '.join(map(repr, near))}?" if near else ""


def suggest(word: str, known: Iterable[str], *, intro: str = "it has", see: str = "") -> str:
    """The end of an error about an unknown word: the nearest known words, or else a short list of those there are.

    Args:
        word: the unknown word. known: the allowed words.
        intro: what goes before the list. see: where all of them are listed, for a list that is cut.
    """
    known = list(known)
    return did_you_mean(word, known) or f"; {intro} {short_list(known, see)}"


def short_list(words: Iterable[object], see: str = "", limit: int = 8) -> str:
    """`adam, adamw, sgd`; for more than `limit` words the first ones, how many more there are, and where to see them."""
    shown = [str(word) for word in words]
    if len(shown) <= limit:
        return listing(shown)
    return f"{listing(shown[:limit])} and {len(shown) - limit} more" + (f" (see {see})" if see else "")


def describe(error: BaseException) -> str:
    """`ValueError: what it says`, on one line; optplug's own errors speak for themselves."""
    try:
        says = " ".join(str(error).split())
    except Exception:  # an exception of a stranger's class may fail at this too
        says = "(its message cannot be shown)"
    if isinstance(error, OptplugError) and says:
        return says
    return f"{type(error).__name__}: {says}" if says else type(error).__name__


def listing(words: Iterable[object]) -> str:
    """`adam, adamw, sgd`, or `none`."""
    return ", ".join(map(str, words)) or "none"


def number_hint(value: object) -> str:
    """`; YAML reads 1e-3 as text, write 1.0e-3` for text that looks like a number, else nothing."""
    try:
        float(value if isinstance(value, str) else "none")
    except ValueError:
        return ""
    mantissa, e, exponent = str(value).lower().partition("e")
    if e and "." not in mantissa:
        return f"; YAML reads {value} as text, write {mantissa}.0e{exponent}"
    return "; write it without quotes"
