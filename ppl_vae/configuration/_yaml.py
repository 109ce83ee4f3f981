"""The YAML dialect of configurations."""

from __future__ import annotations

import re
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """A loader with the numbers and truth values of YAML 1.2: 1e-3 is a number, and off is a word."""


class Dumper(yaml.SafeDumper):
    """A dumper that writes lists on one line and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_NUMBER = re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$")
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|false)$"), list("tf"))
for _class in (Loader, Dumper):
    _class.add_implicit_resolver(_FLOAT, _NUMBER, list("-+.0123456789"))  # type: ignore[attr-defined]
Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))
