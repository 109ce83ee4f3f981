"""The pieces for a table: what a configuration that names none takes, once the kinds of the columns are known."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from ppl_vae import data
from ppl_vae._files import is_table
from ppl_vae.configuration.pieces import arguments_of

Tree = dict[str, Any]


def with_table(values: Tree, tree: Tree, given: Tree) -> tuple[Tree, Tree]:
    """Return the values of the data and the tree of a configuration, in which a table has its kinds and its pieces.

    The kinds of all columns, the labels and the ids become explicit, so that the run reads every file alike. The
    likelihood is `Mixed`, and the posterior's network a `TableEncoder` around the one that is there, unless `given`
    names a likelihood or a posterior. Other data change nothing.
    """
    if not is_table(values["name"]):
        return values, tree
    table = cast(data.Table, data.load(**arguments_of(data.load, "data").objects(values)))
    skipped = {name: kind for name, kind in (values["columns"] or {}).items() if kind == "skip"}
    values = values | {"columns": skipped | table.schema, "labels": table.label_column, "ids": table.id_column}
    kinds = list(table.columns)
    tree = dict(tree)
    if "likelihood" not in given:
        tree["likelihood"] = {"class": "Mixed", "columns": kinds, "network": tree["likelihood"]["network"]}
    if "posterior" not in given:
        encoder = {"class": "TableEncoder", "columns": kinds, "network": tree["posterior"]["network"]}
        tree["posterior"] = tree["posterior"] | {"network": encoder}
    return values, tree


def told(table: data.Table) -> str:
    """Return a line on what a table was taken for, and how to say otherwise."""
    found = zip(table.column_names, table.columns, table.categories, strict=True)
    columns = [f"{name} {f'of {_some(codes)}' if codes else kind}" for name, kind, codes in found]
    shown = [*columns[:20], f"and {len(columns) - 20} more"] if len(columns) > 20 else columns
    asides = {"labels": table.label_column, "ids": table.id_column}
    parts = [f"columns {', '.join(shown)}", *(f"{name} from {column}" for name, column in asides.items() if column)]
    values = [cast(Tensor, part.x) for part in (table.train, table.validation, table.test)]
    missing = sum(int(x.isnan().sum()) for x in values)
    parts += [f"{missing} entries are missing"] if missing else []
    return f"{table.name} has {'; '.join(parts)} (other kinds: --data.columns '{{{table.column_names[0]}: real}}')"


def _some(codes: tuple[Any, ...]) -> str:
    return "|".join(map(str, codes[:4])) + ("|..." if len(codes) > 4 else "")
