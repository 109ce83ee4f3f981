"""The folder of a run: written while it trains (`RunFolder`), read (`load_run`), opened with its data, listed."""

from ppl_vae.runs.folder import RunFolder, draw, example_conditions, labels_in_turn, load_run, next_free

__all__ = ["RunFolder", "draw", "example_conditions", "labels_in_turn", "load_run", "next_free"]
