"""The option that is meant by one that does not exist: ``--latent_dim`` for ``--prior.latent_dim``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence

_OTHERS = {  # the last part of a name here, or an option with its value, and what other programs call it
    "batch_size": ("batch", "bs"),
    "clip_norm": ("clip", "grad_clip"),
    "data": ("dataset",),
    "device cpu": ("cpu",),
    "device cuda": ("cuda", "gpu", "gpus"),
    "device mps": ("mps",),
    "early_stopping": ("patience",),
    "epochs": ("epoch", "max_epochs", "n_epochs", "num_epochs"),
    "hidden": ("hidden_dim", "hidden_dims", "hidden_sizes", "layers", "num_layers", "units"),
    "latent_dim": ("latent", "latents", "latent_size", "z_dim"),
    "lr": ("learning_rate",),
    "num_particles": ("k", "particles"),
    "out": ("name", "output", "output_dir"),
    "seed": ("random_state",),
    "size": ("count", "n", "num", "num_samples", "number"),
}
_WORDS = {word: meant for meant, words in _OTHERS.items() for word in words}


def place(
    unknown: Mapping[str, str],
    names: Collection[str],
    given: Collection[str],
    elsewhere: Callable[[str], Sequence[str]] = lambda option: (),
) -> dict[str, str]:
    """Return the option that each unknown one means: the only one whose name ends as it does.

    The parts of the unknown option stand in the name in their order, so ``likelihood.hidden`` can mean
    ``likelihood.network.hidden`` and never ``posterior.network.hidden``.

    Args:
        unknown: The options that do not exist, and the message for each where nothing is near.
        names: Those that do.
        given: Those that are given.
        elsewhere: A function from an unknown option to the choices that have such an argument.

    Raises:
        ValueError: If no option is meant, or several may be; the message names what is near.

    Example:
        >>> place({"latent_dim": "no such option"}, ["prior.latent_dim", "optimizer.lr"], [])
        {'latent_dim': 'prior.latent_dim'}
    """
    meant: dict[str, str] = {}
    for option, message in unknown.items():
        found = [] if option in _WORDS else [name for name in names if fits(option, name)]
        if len(found) > 1:
            raise ValueError(f"--{option} may mean {_listed(found, 'or')}; give the one that is meant, or each")
        if not found:
            raise ValueError(_hint(option, names, elsewhere) or message)
        if found[0] in given or found[0] in meant.values():
            raise ValueError(f"--{option} means --{found[0]}, which is given as well; give it once")
        meant[option] = found[0]
    return meant


def with_value(word: str) -> str | None:
    """Return the option with its value that a word of other programs means, ``device cuda`` for ``gpu``; else None."""
    meant = _WORDS.get(word.lower(), "")
    return meant if " " in meant else None


def fits(option: str, name: str) -> bool:
    """Return whether an option ends as a name does, and its parts stand in the name in their order."""
    path, parts = iter(name.split(".")), option.split(".")
    return name.split(".")[-1] == parts[-1] and all(part in path for part in parts)


def _hint(option: str, names: Collection[str], elsewhere: Callable[[str], Sequence[str]]) -> str | None:
    """Return a message that names what may be meant; None if nothing is near."""
    last = option.rpartition(".")[2].replace("-", "_").lower()
    word, _, value = _WORDS.get(last, last).partition(" ")
    by_end: dict[str, list[str]] = {}
    for name in names:
        by_end.setdefault(name.rpartition(".")[2], []).append(name)
    longer = [end for end in by_end if end.startswith(f"{last}_") and end != word]
    ends = [end for end in (word, *longer) if end in by_end]
    if not ends and (choices := elsewhere(option)):
        some = ", ".join([*choices[:5], *(["..."] if len(choices) > 5 else [])])
        return f"--{option} is unknown here; it is an argument of {some}: choose one of them to set it"
    ends = ends or difflib.get_close_matches(last, by_end, n=1, cutoff=0.7)
    near = [name for end in ends for name in by_end[end]] or (
        [] if "." in option else difflib.get_close_matches(option, names, n=1)
    )
    inside = [name for name in near if name.partition(".")[0] == option.partition(".")[0]]
    of_another = "." in option and any(name.startswith(f"{option.partition('.')[0]}.") for name in names)
    meant = [f"{name} {value}".strip() for name in inside or ([] if of_another else near)]
    return f"--{option} is unknown; did you mean {_listed(meant, 'or')}?" if meant else None


def _listed(names: Sequence[str], word: str) -> str:
    options = [f"--{name}" for name in names]
    return f" {word} ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)
