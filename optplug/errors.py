"""Every exception that optplug raises.

Each class derives from `OptplugError` and from the builtin exception that fits, such as `ValueError` or `LookupError`.
The functions below the classes build the texts of messages. This file imports the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

Loc = tuple["str | int", ...]
"""A location in a configuration: the keys and indices from the outside to the inside, `("param_groups", 0, "lr")`."""


class OptplugError(Exception):
    """Base class of all exceptions that optplug raises. `str(error)` is the location, if it is known, and the message.

    Args:
        message: the message, without the location.
        loc: as the attribute. Default: unknown.
        argument: as the attribute. Default: None.
        inside: as the attribute. Default: the whole value.

    Attributes:
        loc: the location in a configuration, such as `("param_groups", 0, "lr")`. Empty when it is not known.
        argument: the name of the argument with the wrong value; None if the error is not about a single argument.
        inside: the location inside the value of the argument, such as `(1,)` for `betas[1]`.
        is_contradiction: whether each argument is valid by itself, and the arguments contradict each other.
        errors: all errors that this error reports. Usually only the error itself.
    """

    is_contradiction = False
    _joined: tuple[OptplugError, ...] = ()

    def __init__(self, message: str = "", *, loc: Loc = (), argument: str | None = None, inside: Loc = ()) -> None:
        super().__init__(message)
        self.loc = loc
        self.argument = argument
        self.inside = inside

    @property
    def errors(self) -> tuple[OptplugError, ...]:
        return self._joined or (self,)

    @property
    def message(self) -> str:
        """The message without the location."""
        return super().__str__()

    def __str__(self) -> str:
        return f"{loc_text(self.loc)}: {self.message}" if self.loc else self.message


class UnknownNameError(OptplugError, LookupError):
    """No installed plugin registers this name."""


class AmbiguousNameError(OptplugError, LookupError):
    """Several plugins register this name. Write `plugin:name` to choose one."""


class PluginError(OptplugError, RuntimeError):
    """A plugin, or an object that it registers, cannot be loaded or has the wrong type."""


class SpecError(OptplugError, ValueError):
    """A spec of a plugin has an invalid field."""


class ConfigError(OptplugError, ValueError):
    """A configuration has an invalid key, value or combination of keys."""


class ConfigTypeError(OptplugError, TypeError):
    """A configuration value or an argument has the wrong type."""


class ConfigErrors(ConfigError):  # noqa: N818  # the plural distinguishes it from ConfigError
    """A configuration has several errors.

    Attributes:
        errors: the errors, each with its `loc`, in the order of the configuration.
    """

    def __init__(self, errors: Sequence[OptplugError]) -> None:
        lines = "".join(f"\n  {error}" for error in errors)
        super().__init__(f"the configuration has {len(errors)} errors:{lines}")
        self._joined = tuple(errors)

    def __reduce__(self) -> tuple[type, tuple[Sequence[OptplugError]]]:
        return type(self), (self.errors,)


class HyperparameterError(OptplugError, ValueError):
    """A hyperparameter is unknown or out of range, or contradicts another one."""


class HyperparameterTypeError(OptplugError, TypeError):
    """A hyperparameter has the wrong type."""


class ParameterError(OptplugError, ValueError):
    """An optimizer cannot optimize these parameters."""


class LineSearchError(HyperparameterError, RuntimeError):
    """The value of `line_search_fn` is not the name of a line search."""


class ModeError(OptplugError, RuntimeError):
    """An optimizer with `train()` and `eval()` is in the wrong mode."""


class RuleError(OptplugError, TypeError):
    """An update rule uses an operation that rules do not support, or does not match its optimizer's declaration."""


class BranchingError(RuleError):
    """An update rule branches on an element-wise value, which has no single truth value."""


class EngineError(OptplugError, RuntimeError):
    """The requested engine does not exist or cannot step these parameters."""


class RecordingError(EngineError, AssertionError):
    """A step cannot be recorded as requested by `differentiable=True` or `capturable=True`."""


class ConformanceError(OptplugError, AssertionError):
    """An optimizer or a scheduler does not keep a promise of the conformance kit.

    Args:
        message: what happened.
        blame: as the attribute. Default: `"class"`.
        remedy: as the attribute. Default: none.

    Attributes:
        blame: whose fault it is: `"class"`, the optimizer or scheduler itself, or `"declaration"`, its spec.
        remedy: what to change; empty if it is not known.
    """

    def __init__(
        self, message: str = "", *, blame: Literal["class", "declaration"] = "class", remedy: str = ""
    ) -> None:
        super().__init__(message)
        self.blame = blame
        self.remedy = remedy


class DependencyError(OptplugError, ImportError):
    """A package that optplug needs is not installed, or is too old."""


class MissingLightningError(DependencyError):
    """The requested feature needs Lightning, and Lightning is not installed, or is too old."""


class SparseGradientError(OptplugError, RuntimeError):
    """The layout of a gradient, sparse or dense, is not supported by the optimizer or by its options."""


class WiringError(OptplugError, RuntimeError):
    """The trainer, the module and the configuration do not fit together."""


class NonFiniteMetricError(WiringError):
    """The value of a monitored metric is not finite, and the configuration has `on_nonfinite: raise`."""


def loc_text(loc: Loc) -> str:
    """Return a location as text: `param_groups[0].lr`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in loc)
    return text.removeprefix(".")


class ErrorCollector:
    """Collects errors, so that one exception reports all of them.

    Attributes:
        errors: the collected errors.
    """

    def __init__(self) -> None:
        self.errors: list[OptplugError] = []

    def add(self, error: OptplugError, loc: Loc = (), argument_loc: Callable[[str], Loc] | None = None) -> None:
        """Add an error, or each of the errors that it reports.

        Args:
            error: the error. Its `loc` is relative to `loc`.
            loc: the location of the value that was checked.
            argument_loc: returns the location of an argument, for errors about an argument. Default: `loc` applies to
                all errors.
        """
        for each in error.errors:
            if argument_loc is not None and each.argument is not None:
                each.loc = (*argument_loc(each.argument), *each.inside)
            else:
                each.loc = (*loc, *each.loc)
            self.errors.append(each)

    def collect(self, loc: Loc = ()) -> _Collecting:
        """A context manager that adds an `OptplugError` raised in its block and suppresses the exception."""
        return _Collecting(self, loc)

    def sort(self, config: Any) -> None:
        """Sort the errors in the order of the configuration.

        Args:
            config: the configuration as the user wrote it.
        """
        self.errors.sort(key=lambda error: _position(config, error.loc))

    def raise_collected(self) -> None:
        """Raise a single error unchanged, or several errors as one `ConfigErrors`; do nothing without errors."""
        if len(self.errors) > 1:
            raise ConfigErrors(self.errors)
        for error in self.errors:
            raise error

    def raise_joined(self) -> None:
        """Raise one error that reports all errors; do nothing without errors.

        The exception has the class and begins with the message of the first error, as if that error had been raised
        alone. Its attribute `errors` has all errors.
        """
        if len(self.errors) > 1:
            first = self.errors[0]
            message = "\n".join(error.message for error in self.errors)
            joined = type(first)(message, argument=first.argument, inside=first.inside)
            joined._joined = tuple(self.errors)
            raise joined
        for error in self.errors:
            raise error


class _Collecting:
    # Not a generator with `contextlib.contextmanager`: type checkers must see that `__exit__` suppresses exceptions.
    def __init__(self, collector: ErrorCollector, loc: Loc) -> None:
        self._collector = collector
        self._loc = loc

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, OptplugError):
            self._collector.add(error, self._loc)
        return isinstance(error, OptplugError)


def _position(config: Any, loc: Loc) -> tuple[int, ...]:
    """The index of each key of a location in its mapping, up to the first key that does not exist."""
    position = []
    node = config
    for key in loc:
        try:
            position.append(list(node).index(key) if isinstance(node, Mapping) else int(key))
            node = node[key]
        except Exception:  # a missing key, or a value that cannot be read
            break
    return tuple(position)


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """Return up to three of the known words that are similar to `word`, the most similar first."""
    import difflib  # imported here because only error messages need it

    lowered = {k.lower(): k for k in known}
    text = str(word).lower()
    # Words that contain `word`, or are contained in it, come before words that are only spelled similarly.
    containing = [k for k in lowered if min(len(text), len(k)) > 3 and (text in k or k in text)]
    # An abbreviation made of first letters, such as `lr` for `learning_rate`, comes first: difflib does not find it.
    near = [k for k in lowered if len(k) > 1 and k == "".join(part[:1] for part in text.split("_"))]
    near += difflib.get_close_matches(text, containing, n=3, cutoff=0)
    near += [k for k in difflib.get_close_matches(text, lowered, n=3, cutoff=0.6) if k not in near]
    return [lowered[k] for k in near[:3]]


def is_misspelling(word: str, known: Iterable[str]) -> bool:
    """Whether `word` is a known word with a spelling error, or one is the abbreviation of the other.

    Abbreviations are initials (`lr`, `wd`), and the beginning of a single word (`eps` of `epsilon`). The function is
    stricter than `nearest`: `lr_scale` resembles `lr_decay`, but it is not a misspelling.
    """
    import difflib  # imported here because only unknown words need it

    text = str(word).lower()
    for other in (k.lower() for k in known):
        is_abbreviation = len(text) > 1 and text == _initials(other)
        is_abbreviated = other == _initials(text) and other not in text.split("_")
        is_beginning = len(other) > 2 and text.startswith(other) and text.isalpha()
        has_same_letters = sorted(text) == sorted(other)  # `eats` and `etas` are not similar enough
        is_similar = abs(len(text) - len(other)) <= 2 and difflib.SequenceMatcher(None, text, other).ratio() >= 0.8
        if is_abbreviation or is_abbreviated or is_beginning or has_same_letters or is_similar:
            return True
    return False


def _initials(words: str) -> str:
    return "".join(part[:1] for part in words.split("_"))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'adam', 'adamw'?"`, or an empty string when no known word is similar."""
    near = nearest(word, known)
    return f"; did you mean {', '.join(map(repr, near))}?" if near else ""


def suggest(word: str, known: Iterable[str], *, intro: str = "it has", see: str = "") -> str:
    """Return the end of a message about an unknown word: the similar words, or else a short list of the known words.

    Args:
        word: the unknown word.
        known: the allowed words.
        intro: the words before the list.
        see: where the user finds the complete list; shown when the list is cut.
    """
    known = list(known)
    return did_you_mean(word, known) or f"; {intro} {short_list(known, see)}"


def short_list(words: Iterable[object], see: str = "", limit: int = 8) -> str:
    """Return `adam, adamw, sgd`; of more than `limit` words the first ones, and how many more there are.

    Args:
        words: the words to list.
        see: where the user finds the complete list; shown when the list is cut.
        limit: the number of words that are shown of a longer list. A list with one word more is not cut.
    """
    shown = [str(word) for word in words]
    if len(shown) <= limit + 1:
        return listing(shown)
    return f"{listing(shown[:limit])} and {len(shown) - limit} more" + (f" (see {see})" if see else "")


def one_line(error: BaseException) -> str:
    """Return `ValueError: message` on one line; for optplug's own errors only the message."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # __str__ of a third-party exception may raise
        message = "(its message cannot be shown)"
    if isinstance(error, OptplugError) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def listing(words: Iterable[object]) -> str:
    """Return `adam, adamw, sgd`, or `none` when there are no words."""
    return ", ".join(map(str, words)) or "none"


def upgrade_hint(distribution: str, version: str, minimum: tuple[int, int]) -> str:
    """Return `torch 2.5.1 is installed: pip install "torch>=2.6"`, or an empty string if the version is not too old.

    Args:
        distribution: the name under which pip installs the package.
        version: the installed version. A version that does not begin with two numbers is not too old.
        minimum: the first two numbers of the oldest version that optplug supports.
    """
    import re  # imported here because only the checks of versions need it

    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= minimum:
        return ""
    return f'{distribution} {version} is installed: pip install "{distribution}>={minimum[0]}.{minimum[1]}"'


def number_hint(value: object) -> str:
    """Return `; write 0.001` for text that is a finite number; `; YAML's None is null`; else an empty string."""
    if isinstance(value, str) and value.lower() == "none":
        return "; in YAML None is null, or omit the key"
    if isinstance(value, str) and value.count(",") == 1:
        value = value.replace(",", ".")
    try:
        number = float(value if isinstance(value, str) else "none")
    except ValueError:
        return ""
    return f"; write {number!r}" if math.isfinite(number) else ""
