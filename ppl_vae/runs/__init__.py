"""The folder of a run: `RunFolder` writes it during training, and `load_run` reads it."""

from ppl_vae.runs.drawing import draw, example_conditions, labels_in_turn
from ppl_vae.runs.folder import RunFolder, next_free
from ppl_vae.runs.reading import load_run, read_facts

__all__ = ["RunFolder", "draw", "example_conditions", "labels_in_turn", "load_run", "next_free", "read_facts"]
