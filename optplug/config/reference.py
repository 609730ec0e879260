"""The reference tables of `docs/configuration.md`, made from the tables of fields.

python -m optplug.config.reference docs/configuration.md    # writes the tables into the page
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from optplug.config import form
from optplug.config.fields import Field, Table

TABLES: Mapping[str, Table] = {
    "top level": {**form.TOP_LEVEL, form.OVERRIDE.name: form.OVERRIDE, form.VERBOSE.name: form.VERBOSE},
    "optimizer": form.OPTIMIZER,
    "entry": form.ENTRY,
    "wrapper": form.BASE,
    "optimizer of matrices": form.MATRICES,
    "fallback": form.FALLBACK,
    "scheduler": form.SCHEDULER,
    "length": form.LENGTH,
    "warmup": form.WARMUP,
    "nested schedule": form.NESTED_SCHEDULE,
    "group rule": form.GROUP_RULE,
    **{f"preset {name}": fields for name, fields in form.PRESETS.items()},
}
"""The tables by the title in their marker in the page."""


def update_tables(page: str) -> str:
    """A page with the current tables between their markers, `<!-- table: optimizer -->` and `<!-- end of table -->`.

    Raises:
        KeyError: a marker names an unknown table.
    """
    pattern = r"(<!-- table: ([^\n]+?) -->\n).*?(<!-- end of table -->)"
    return re.sub(pattern, lambda m: f"{m[1]}{_render(TABLES[m[2]])}{m[3]}", page, flags=re.DOTALL)


def _render(fields: Table) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for field in fields.values():
        lines.append(f"| `{field.name}` | {field.kind} | {_default(field)} | {field.words} |")
    return "\n".join(lines) + "\n"


def _default(field: Field) -> str:
    if field.default is ...:
        return "required"
    if isinstance(field.default, tuple):
        return f"`[{', '.join(field.default)}]`"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return "" if field.default is None else f"`{field.default}`"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(update_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
