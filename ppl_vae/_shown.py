"""How results show themselves in a notebook."""

from __future__ import annotations

import importlib


class Shown:
    """A thing that a notebook shows with a picture: its `repr`, and one of `ppl_vae.plots`.

    The pictures stand above all results, so that they are found by name, and only when a notebook asks.
    """

    def _repr_html_(self) -> str:
        return importlib.import_module("ppl_vae._notebook").html_of(self)
