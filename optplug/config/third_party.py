"""Exceptions of third-party constructors, as optplug's own errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from optplug.config.form import BASE_KEY
from optplug.errors import ConfigError, ConfigTypeError, DependencyError, OptplugError

_OTHER_FAILURES = (RuntimeError, MemoryError, OSError, Warning)
"""Exceptions that are not about the given values. torch raises RuntimeError for the parameters."""


@contextmanager
def third_party_errors(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Wrap exceptions raised by third-party constructors.

    Args:
        name: of the optimizer or scheduler, for the message.
        arguments: the constructor arguments, for the message.

    Raises:
        DependencyError: in place of an ImportError.
        ConfigTypeError: in place of a TypeError.
        ConfigError: in place of the other exceptions with which constructors refuse values, some by accident.
    """
    try:
        yield
    except OptplugError:
        raise
    except ImportError as error:
        raise DependencyError(f"{name} {_needs(error)}") from error
    except Exception as error:  # the constructor of a third-party class can raise anything
        if isinstance(error, _OTHER_FAILURES) and not isinstance(error, NotImplementedError):
            raise
        kind = ConfigTypeError if isinstance(error, TypeError) else ConfigError
        given = ", ".join(f"{k}={_shown(k, v)!r}" for k, v in arguments.items()) or "its defaults"
        raise kind(f"{name} rejected {given}: {str(error) or type(error).__name__}") from error


def _shown(key: str, value: Any) -> Any:
    """A value for a message: a base by its name."""
    return value["name"] if key == BASE_KEY and isinstance(value, Mapping) and "name" in value else value


def _needs(error: ImportError) -> str:
    """What is missing, with the name of the package if the error has it, or its text between quotation marks."""
    quoted = re.search(r"[`'\"]([A-Za-z]\w*)[`'\"]", str(error))
    package = (error.name or "").partition(".")[0] or (quoted[1] if quoted else "")
    return f"needs {package}: {error}" if package else f"cannot be used: {error}"
