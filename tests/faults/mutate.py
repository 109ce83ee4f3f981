"""Random damage: to the bytes of a file, and to a tree of values that is then written as a good file."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch

KINDS = ("flip", "flips", "truncate", "insert", "delete", "repeat", "zeros", "swap", "digits")
_DIGITS = b"0123456789-.eE"


def damage(content: bytes, kind: str, numbers: random.Random) -> bytes:
    """Return other bytes: a bit flipped, a range cut, copied, moved or zeroed, or digits in place of digits."""
    size = len(content)
    start, end = sorted((numbers.randrange(size + 1), numbers.randrange(size + 1)))
    if numbers.random() < 0.7:  # mostly a short range
        end = min(end, start + numbers.randrange(1, 16))
    part = content[start:end]
    if kind in ("flip", "flips"):
        changed = bytearray(content)
        for _ in range(1 if kind == "flip" else numbers.randrange(2, 20)):
            changed[numbers.randrange(size)] ^= 1 << numbers.randrange(8)
        return bytes(changed)
    if kind == "digits":  # of text, or of a header: other numbers
        places = [i for i, byte in enumerate(content[:4096]) if byte in _DIGITS]
        changed = bytearray(content)
        for place in numbers.sample(places, min(len(places), numbers.randrange(1, 6))):
            changed[place] = numbers.choice(_DIGITS)
        return bytes(changed)
    return {
        "truncate": lambda: content[:start],
        "insert": lambda: content[:start] + numbers.randbytes(numbers.randrange(1, 64)) + content[start:],
        "delete": lambda: content[:start] + content[end:],
        "repeat": lambda: content[:end] + part * numbers.randrange(1, 4) + content[end:],
        "zeros": lambda: content[:start] + bytes(len(part)) + content[end:],
        "swap": lambda: content[end:] + part + content[:start],
    }[kind]()


VALUES: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: 0,
    lambda: -1,
    lambda: 1,
    lambda: 3,
    lambda: 10**12,
    lambda: 10**30,
    lambda: 0.5,
    lambda: math.nan,
    lambda: math.inf,
    lambda: -1e300,
    lambda: "",
    lambda: "text",
    lambda: "1",
    lambda: "../../etc/passwd",
    lambda: "\x1b[2J\nä\u202e",
    lambda: "x" * 10_000,
    lambda: [],
    lambda: [1, 2],
    lambda: [[[]]],
    lambda: [10**9],
    lambda: {},
    lambda: {"class": "Linear"},
    lambda: {1: 2},
)
TENSORS: tuple[Callable[[], Any], ...] = (
    lambda: torch.zeros(()),
    lambda: torch.zeros(0),
    lambda: torch.full((3,), math.nan),
    lambda: torch.zeros(2, 2, dtype=torch.complex64),
    lambda: torch.ones(8, 64, dtype=torch.bool),
    lambda: torch.zeros(8, 64, device="meta"),
    lambda: torch.zeros(1).expand(8, 64),
    lambda: torch.zeros(3).to_sparse(),
    lambda: torch.quantize_per_tensor(torch.zeros(8), 0.1, 0, torch.quint8),
)


def edit(tree: Any, numbers: random.Random, tensors: bool = False) -> tuple[Any, str]:
    """Return a copy of a tree with one node replaced, removed, repeated or of another type, and what was done."""
    tree = copy.deepcopy(tree)
    holder, key, path = numbers.choice(list(_nodes(tree)))
    node = holder[key]
    kind = numbers.choice(("replace", "replace", "remove", "retype", "repeat", "number"))
    if kind == "remove":
        del holder[key]
        return tree, f"{path} removed"
    if kind == "repeat" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(node))
        return tree, f"{path} repeated"
    if kind == "number" and isinstance(node, int | float):
        holder[key] = numbers.choice((-node, node + 1, node * 10**6, node + 0.5, str(node), [node], 10**400))
    elif kind == "retype" and isinstance(node, torch.Tensor) and tensors:
        holder[key] = numbers.choice(
            (node.double, node.half, node.flatten, lambda: node[None], node.tolist, node.bool, node.long, node.t)
        )() if node.dim() <= 2 else node.flatten()  # fmt: skip
    elif kind == "retype":
        holder[key] = numbers.choice((lambda: [node], lambda: {"value": node}, lambda: str(node), lambda: {"": node}))()
    else:
        holder[key] = numbers.choice(VALUES + (TENSORS if tensors else ()))()
    shown = holder[key]
    return tree, f"{path} = {tuple(shown.shape) if isinstance(shown, torch.Tensor) else repr(shown)[:60]}"


def _nodes(tree: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Yield every node of a tree: what holds it, its key there, and its path."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield tree, key, f"{path}[{key!r}]"
        yield from _nodes(value, f"{path}[{key!r}]")
