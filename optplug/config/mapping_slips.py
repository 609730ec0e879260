"""Hints for text that is meant to be a mapping. PyYAML is not needed: an installation for plain loops may lack it."""

from __future__ import annotations

import re


def missing_space(text: str) -> str | None:
    """The last key and value in a text if there is no space after the colon, with the space; else None."""
    found = re.search(r"(?:^|\s)([A-Za-z_]\w*):([\w.+'\"\[{-]\S*)$", text)
    return f"{found[1]}: {found[2]}" if found else None


def mapping_slip(text: str) -> str:
    """The end of a message about a text that is meant to be a mapping: what to write; empty for other texts."""
    spaced = missing_space(text)
    if spaced:
        return f"; write a space after the colon: {spaced}"
    found = re.match(r"([A-Za-z_]\w*)\s*=\s*(\S+)", text)
    return f"; write a colon: {found[1]}: {found[2]}" if found else ""


def name_slip(text: str) -> str | None:
    """What is wrong with the YAML of a name; None if the text may be a name."""
    if text == "None":
        return "is 'None': in YAML, None is null"
    if text.lstrip()[:1] in ("{", "["):
        slip = mapping_slip(text.strip(" {}[]"))
        if not slip:
            return "is text and not a mapping: close every bracket, and omit quotes around the whole"
    else:
        slip = mapping_slip(text) if " " in text.strip() or text.startswith("name:") else ""
    return f"is {text!r}: {slip.removeprefix('; ')}" if slip else None
