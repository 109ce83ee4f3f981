"""The words of a command line: runs and options. The module imports no torch, to keep light commands fast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ppl_vae._validation import did_you_mean
from ppl_vae.configuration.words import Words, joined, number, split, word_of

__all__ = ["COMPARED", "RACED", "Words", "find_run", "joined", "number", "split", "wants_help", "word_of"]

RACED = ("optimizer", "scheduler", "epochs", "batch_size", "clip_norm")  # options of train that count in a race
COMPARED = ("comparison.json", "race.json")  # of a folder that a comparison wrote


def wants_help(argv: Sequence[str]) -> bool:
    """Return whether a command line asks for help."""
    return any(word in ("-h", "--help") for word in argv)


def find_run(word: str, others: Sequence[str] = ()) -> Path:
    """Return the path of a run, named by its folder, by its name under ``runs``, or by a checkpoint in it.

    For a checkpoint the path is that of its file.

    Args:
        word: The word.
        others: Files besides run.json by which a folder is one too.

    Raises:
        FileNotFoundError: If there is no such run.
    """
    candidates = [Path(word), Path("runs") / word]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        nearby = Path(word).parent if Path(word).parent != Path(".") else Path("runs")
        names = [str(path) for path in sorted(nearby.glob("*")) if (path / "run.json").is_file()]
        near = did_you_mean(word, names) or did_you_mean(nearby / word, names)
        raise FileNotFoundError(f"there is no run {word}; expected a run's folder, runs/<name>{near}")
    folder = found.parent if found.is_file() else found
    if not any((folder / name).is_file() for name in ("run.json", *others)):
        compared = f", and so {'is' if len(others) == 1 else 'are'} {' and '.join(others)}" if others else ""
        raise FileNotFoundError(f"{found} is no run's folder: run.json, written by ppl-vae train, is missing{compared}")
    return found
