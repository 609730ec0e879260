"""Exceptions of third-party constructors, as optplug's own errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from optplug.errors import ConfigError, ConfigTypeError, OptplugError

_REFUSALS = (
    *(TypeError, ValueError, LookupError, ArithmeticError),
    *(AssertionError, AttributeError, NotImplementedError),
)
"""Exceptions with which constructors refuse values, some by accident."""


@contextmanager
def third_party_errors(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Wrap exceptions raised by third-party constructors.

    Args:
        name: of the optimizer or scheduler, for the message.
        arguments: the constructor arguments, for the message.

    Raises:
        ConfigTypeError: in place of a TypeError.
        ConfigError: in place of a ValueError, LookupError, ArithmeticError, AssertionError, AttributeError or
            NotImplementedError.
    """
    try:
        yield
    except OptplugError:
        raise
    except _REFUSALS as error:
        kind = ConfigTypeError if isinstance(error, TypeError) else ConfigError
        given = ", ".join(f"{k}={v!r}" for k, v in arguments.items()) or "its defaults"
        raise kind(f"{name} rejected {given}: {str(error) or type(error).__name__}") from error
