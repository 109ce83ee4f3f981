"""HTML put together from values: every text is escaped, where it is put in."""

from __future__ import annotations

import base64
import html
import json
import math
from typing import Any

import numpy as np


class Safe(str):
    """Text that is HTML already."""


def tag(name: str, /, *children: object, **attributes: object) -> Safe:
    """Return an element; children and attributes are escaped, but for children that are `Safe`.

    Args:
        name: The element.
        *children: Texts or elements; None is left out.
        **attributes: A trailing underscore is cut (``class_``), an inner one is a hyphen (``aria_label``), None is left
            out.

    Example:
        >>> tag("p", "a < b", class_="note")
        '<p class="note">a &lt; b</p>'
    """
    inside = "".join(c if isinstance(c, Safe) else html.escape(str(c)) for c in children if c is not None)
    given = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    words = "".join(f' {k}="{html.escape(str(v))}"' for k, v in given.items())
    return Safe(f"<{name}{words}>" if name in ("img", "meta") else f"<{name}{words}>{inside}</{name}>")


def joined(*parts: Safe | None) -> Safe:
    """Return elements one after the other, without those that are None."""
    return Safe("".join(part for part in parts if part is not None))


def table(head: list[str], rows: list[list[str]], caption: str | None = None) -> Safe:
    """Return a table whose first column names its rows; it scrolls where it is too wide."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    lines = [tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)) for first, *rest in rows]
    whole = tag("table", tag("thead", top) if any(head) else None, tag("tbody", *lines))
    title = None if caption is None else tag("p", caption, class_="caption")
    return joined(title, tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption or "table"))


def picture(png: bytes, alt: str, class_: str = "pixels", width: int | None = None) -> Safe:
    """Return a picture that lies in the page itself."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return tag("img", src=source, alt=alt, class_=class_, width=width)


def data_block(content: object, name: str) -> Safe:
    """Return values as JSON for the scripts of the page; no text in them can end the element."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Safe(f'<script type="application/json" id="{html.escape(name)}">{text}</script>')


def packed(values: Any, kind: str = "float32") -> dict[str, Any]:
    """Return numbers as base64, with their kind and shape."""
    array = np.ascontiguousarray(np.asarray(values), dtype=np.dtype(kind).newbyteorder("<"))
    return {"kind": kind, "shape": list(array.shape), "base64": base64.b64encode(array.tobytes()).decode()}


def number(value: object, form: str = ".4g") -> str:
    """Return a number as text, and a dash for one that is missing or not finite."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return f"{value:{form}}".replace("-", "\u2212", 1) if value < 0 else f"{value:{form}}"
    return "\u2013"
