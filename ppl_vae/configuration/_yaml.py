"""The YAML dialect of configurations: numbers and truth values of YAML 1.2, bounded, without repeated keys."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ppl_vae._words import said_by

MOST_NODES = 10_000  # values of a file, those that an alias repeats counted again
MOST_LEVELS = 30  # of lists and mappings inside each other

_BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float"))
_TIMESTAMP = "tag:yaml.org,2002:timestamp"  # YAML 1.2 has none
_NUMBERS = {
    _BOOL: (re.compile("^(?:true|false)$"), "tf"),
    _INT: (re.compile("^[-+]?[0-9]+$|^0o[0-7]+$|^0x[0-9a-fA-F]+$"), "-+0123456789"),
    _FLOAT: (re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$"), "-+.0123456789"),
}


class Loader(yaml.SafeLoader):
    """A loader with the numbers and truth values of YAML 1.2: 1e-3 is a number, 010 is ten, and off is a word.

    It refuses a key that stands twice in one mapping, more than `MOST_NODES` values and more than `MOST_LEVELS` levels.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._nodes = self._level = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Count the node, and those that an alias repeats, and go on."""
        before, event = self._nodes, self.peek_event()
        self._level += 1
        node = None
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise yaml.composer.ComposerError(None, None, f"*{event.anchor} refers to itself", event.start_mark)
            self._nodes += self._sizes[id(node)]
        self._nodes += 1
        if self._nodes > MOST_NODES or self._level > MOST_LEVELS:
            limit = f"more than {MOST_NODES} values" if self._nodes > MOST_NODES else f"more than {MOST_LEVELS} levels"
            raise yaml.composer.ComposerError(None, None, f"the file has {limit}", event.start_mark)
        node = super().compose_node(parent, index) if node is None else node
        self._level -= 1
        self._sizes[id(node)] = self._nodes - before
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping whose keys differ."""
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        """Construct an integer of YAML 1.2."""
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class Dumper(yaml.SafeDumper):
    """A dumper that writes lists on one line and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def load(text: str, source: str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds.

    Raises:
        ValueError: If it is not valid YAML, passes a limit of `Loader`, or holds something else; the message names
            `source`.
    """
    try:
        tree = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an integer of more than 4,300 digits
        raise ValueError(f"{source} is not valid YAML: {said_by(error)}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{source} holds {type(tree).__name__}; expected options and their values, 'epochs: 10'")
    return tree


def check_bounds(text: str, what: str) -> None:
    """Refuse a text that passes a limit of `Loader`; it need not be YAML.

    Raises:
        ValueError: If it does; the message names `what`.
    """
    try:
        yaml.compose(text, Loader=Loader)
    except yaml.composer.ComposerError as error:
        raise ValueError(f"{what} cannot be read: {error.problem}") from error
    except yaml.YAMLError:
        pass


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (*_NUMBERS, _TIMESTAMP)]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}
for _class in (Loader, Dumper):  # the dumper keeps its own, too: any reader of YAML 1.1 or 1.2 gets the same
    for _tag, (_pattern, _first) in _NUMBERS.items():
        _class.add_implicit_resolver(_tag, _pattern, list(_first))  # type: ignore[attr-defined]
Loader.add_constructor(_INT, Loader.construct_yaml_int)
Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))
