"""An optimizer or a scheduler with its arguments in one word of a command line: `sgd:momentum=0.9,nesterov=True`."""

from __future__ import annotations

import ast
import re
from typing import Any

from optplug.errors import ConfigError


def parse_inline_entry(text: str) -> tuple[str, dict[str, Any]]:
    """Parse `[plugin:]name[:option=value,option=value]` into the name and the options.

    Args:
        text: the text. Values are Python literals, `true` or `false`; any other value is text.

    Raises:
        ConfigError: an option is malformed, or given twice.
    """
    name, equals, given = text.strip().partition("=")
    if not equals:
        return name, {}
    name, _, first = name.rpartition(":")
    if not name:
        raise ConfigError(f"{text!r}: options come after a colon: {first.split(',')[0]}:option=value")
    return name, _parse_options(text, f"{first}={given}")


def _parse_options(text: str, given: str) -> dict[str, Any]:
    """Parse `momentum=0.9,betas=(0.9,0.95)`. A comma in brackets does not separate options."""
    options: dict[str, Any] = {}
    for part in re.split(r",\s*(?![^(\[{]*[)\]}])", given):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (key.isidentifier() and equals and value):
            raise ConfigError(f"{text!r}: write option=value,option=value after the name's colon, not {part!r}")
        if key in options:
            raise ConfigError(f"{text!r} has the option {key} twice")
        try:
            options[key] = ast.literal_eval(value.capitalize() if value in ("true", "false") else value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options
