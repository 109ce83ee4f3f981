"""Values for the page's scripts: numbers as base64, JSON that no text in it can leave."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ppl_vae._interval import Interval


def packed(values: Any, kind: str = "float32") -> dict[str, Any]:
    """Return numbers as base64, with their kind and shape; little-endian."""
    array = np.ascontiguousarray(np.asarray(values), dtype=np.dtype(kind).newbyteorder("<"))
    return {"kind": kind, "shape": list(array.shape), "base64": base64.b64encode(array.tobytes()).decode()}


def plain(value: Any) -> Any:
    """Return values for JSON: a number that is not finite is null, an interval gets its text, as tables write it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        content = {str(name): plain(item) for name, item in value.items()}
        ends = [float(e) for n in ("value", "low", "high") if isinstance(e := content.get(n), int | float)]
        if len(ends) == 3:
            content["text"] = str(Interval(*ends)).replace("-", "\u2212")
        return content
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def block(content: object) -> str:
    """Return JSON for an element of a page; no text in it can end the element."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
