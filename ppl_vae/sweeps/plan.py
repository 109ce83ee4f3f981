"""The plan of a sweep: from a YAML file to runs, each with the whole configuration of a training.

base: digits                        # a preset or file of --config, or options of ppl-vae train
seeds: 3                            # how many, or which; 3 by default
grid:                               # every combination; or a `list` of options, or `random` draws
  prior: [StandardNormal, {class: VampPrior, num_components: 50}]
  optimizer.lr: [1e-3, 3e-3]
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ppl_vae._files import read_text
from ppl_vae._validation import check_positive_int, check_seed, did_you_mean, is_real
from ppl_vae.comparison.races.race import seeds_of
from ppl_vae.configuration import _yaml, config, foreign
from ppl_vae.configuration.config import CONFIG_LIMIT, Config
from ppl_vae.configuration.pieces import KINDS, NETWORK
from ppl_vae.configuration.words import joined, word_of

MOST_RUNS = 10_000
SEEDS = 3  # by default
_KEYS = ("base", "seeds", "grid", "list", "random")
_WAYS = _KEYS[2:]
_TEXTS = ("config", "data", "data.name", "data.root", "data.labels", "data.ids")  # names of files, never of code
_LONGEST = 100  # characters of a folder's name

Options = dict[str, str]  # of a command line, by dotted name


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run of a sweep before it is trained.

    Attributes:
        name: The name of its folder, ``"prior=VampPrior,lr=0.003,seed=0"``.
        label: The setting in short, ``"prior=VampPrior lr=0.003"``.
        setting: The options in which the settings of the sweep differ, with this run's values.
        config: The whole configuration; the seed is in it.
    """

    name: str
    label: str
    setting: Options
    config: Config

    @property
    def seed(self) -> int:
        """The seed of initial parameters, order of the data and noise."""
        return int(self.config.values["seed"])

    @property
    def digest(self) -> str:
        """The identity of the configuration: the SHA-256 of its YAML."""
        return hashlib.sha256(self.config.to_yaml().encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep, in order: all seeds of a setting follow each other.

    Attributes:
        runs: The runs.
        varied: The options in which the settings differ.
        repeated: How many settings are left out since they are the same as an earlier one.
        text: The file.
    """

    runs: tuple[PlannedRun, ...]
    varied: tuple[str, ...]
    repeated: int = 0
    text: str = ""


def read(path: str | Path) -> Plan:
    """Return the plan that a file describes, with every option of every run checked.

    Raises:
        ValueError: If the file is no plan, or an option, a name or a value does not fit, or the file names code from
            outside that nobody trusts.
        OSError: If it cannot be read.
    """
    source = str(path)
    text = read_text(Path(path), CONFIG_LIMIT)
    tree = _yaml.load(text, source)
    for key in tree:
        if key not in _KEYS:
            near = did_you_mean(key, _KEYS)
            raise ValueError(f"{source}: {key!r} is unknown; expected {', '.join(_KEYS)}{near}")
    given = [way for way in _WAYS if way in tree]
    if len(given) > 1:
        raise ValueError(f"{source} has {' and '.join(given)}; expected one of {', '.join(_WAYS)}")
    base = tree.get("base", {})
    base = _flat({"config": base} if isinstance(base, str) else base, f"{source}: base")
    ways = {"grid": _grid, "list": _list, "random": _random}
    settings = list(ways[given[0]](tree[given[0]], f"{source}: {given[0]}")) if given else [Options()]
    seeds = seeds_of(tree.get("seeds", SEEDS), f"{source}: seeds")
    for name in {name for options in (base, *settings) for name in options}:
        if name in ("seed", "out", "resume", "print_config"):
            fix = "give seeds, how many or which" if name == "seed" else "leave it out"
            raise ValueError(f"{source} sets {name}, which the sweep chooses for each run; {fix}")
    if len(settings) * len(seeds) > MOST_RUNS:
        raise ValueError(f"{source} asks for {len(settings) * len(seeds):,} runs; expected {MOST_RUNS:,} at most")
    foreign.require({"values": [v for o in (base, *settings) for n, v in o.items() if n not in _TEXTS]}, text, source)
    return replace(_plan(source, base, settings, seeds), text=text)


def _plan(source: str, base: Options, settings: list[Options], seeds: tuple[int, ...]) -> Plan:
    names = dict.fromkeys(name for options in settings for name in options)
    varied = [name for name in names if len({options.get(name) for options in settings}) > 1]
    runs: dict[str, PlannedRun] = {}
    kept = 0
    for options in settings:
        setting = {name: options[name] for name in varied if name in options}
        parts = _parts(setting, varied)
        label = " ".join(parts) or "base"
        try:
            settled = config.parse(joined({**_without_replaced(base, options), **options, "seed": str(seeds[0])}))
        except ValueError as error:
            raise ValueError(f"{source}: {f'{label}: ' if parts else ''}{error}") from error
        before = len(runs)
        for seed in seeds:
            run = PlannedRun("", label, setting, replace(settled, values=settled.values | {"seed": seed}))
            if run.digest not in runs:
                runs[run.digest] = replace(run, name=_name(parts, run, {other.name for other in runs.values()}))
        kept += len(runs) > before
    return Plan(tuple(runs.values()), tuple(varied), len(settings) - kept)


def _without_replaced(base: Options, options: Options) -> Options:
    """Return the base without the arguments of each class that a setting replaces; networks that both have stay."""
    kept = dict(base)
    for name in options.keys() & base.keys():
        own = {option: option.split(".")[name.count(".") + 1] for option in base if option.startswith(f"{name}.")}
        if own and (kind := KINDS.get(name, NETWORK if "." in name else None)) is not None:
            new = options[name]
            networks = () if new == "null" else kind.arguments(kind.find(new, f"--{name}"), name).networks
            kept = {option: value for option, value in kept.items() if option not in own or own[option] in networks}
    return kept


def _parts(setting: Options, varied: list[str]) -> list[str]:
    """Return ``name=value`` of each option, by the last part of its name where no other setting means another by it."""
    last = {name: name.rpartition(".")[2] for name in varied}
    owners = Counter(last.values())
    return [
        f"{last[name] if owners[last[name]] == 1 else name}={value if value.isprintable() else json.dumps(value)}"
        for name, value in setting.items()
    ]


def _name(parts: list[str], run: PlannedRun, taken: set[str]) -> str:
    """Return a name for a run's folder: what varies, in letters that every file system and shell takes."""
    parts = [re.sub(r"[^A-Za-z0-9_.+=-]+", "-", part).replace("=-", "=").strip("-")[:40].strip("-") for part in parts]
    name = ",".join([*parts, f"seed={run.seed}"])
    if len(name) > _LONGEST or name in taken:
        name = f"{','.join(parts)[:_LONGEST].rstrip(',')},{run.digest[:8]},seed={run.seed}"
    return name


def _flat(node: object, where: str) -> Options:
    """Return options as a command line has them; an entry with a class stands for the class and its arguments."""
    if not isinstance(node, Mapping):
        raise ValueError(f"{where} is {node!r}; expected options of ppl-vae train and their values, 'epochs: 10'")
    options: Options = {}
    for name, value in node.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w+(\.\w+)*", name):
            raise ValueError(f"{where} has {name!r}; expected an option of ppl-vae train, as in 'optimizer.lr: 1e-3'")
        if isinstance(value, Mapping) and "class" in value:
            inner = {f"{name}.{key}": inside for key, inside in value.items() if key != "class"}
            options |= {name: word_of(value["class"])} | _flat(inner, where)
        else:
            options[name] = word_of(value)
    return options


def _grid(node: Any, where: str) -> Iterator[Options]:
    """Yield every combination."""
    if not isinstance(node, Mapping) or not node or not all(isinstance(v, list) and v for v in node.values()):
        raise ValueError(f"{where} is {node!r}; expected options, each with a list of values, 'epochs: [10, 20]'")
    if math.prod(len(values) for values in node.values()) > MOST_RUNS:
        raise ValueError(f"{where} has more than {MOST_RUNS:,} combinations")
    for values in itertools.product(*node.values()):
        yield _flat(dict(zip(node, values, strict=True)), where)


def _list(node: Any, where: str) -> Iterator[Options]:
    """Yield the settings of a list."""
    if not isinstance(node, list) or not node:
        raise ValueError(f"{where} is {node!r}; expected a list of options, '[{{prior: VampPrior}}, {{epochs: 20}}]'")
    for entry in node:
        yield _flat(entry, where)


def _random(node: Any, where: str) -> Iterator[Options]:
    """Yield random draws; more draws of the same seed begin with the same ones."""
    if not isinstance(node, Mapping) or not {"draws", "options"} <= node.keys() <= {"draws", "seed", "options"}:
        raise ValueError(f"{where} is {node!r}; expected draws, seed (0 by default) and options")
    over = node["options"]
    if not isinstance(over, Mapping) or not over:
        raise ValueError(f"{where}: options is {over!r}; expected options, each with a list or with low and high")
    if check_positive_int(node["draws"], f"{where}: draws") > MOST_RUNS:
        raise ValueError(f"{where}: draws is {node['draws']}; expected {MOST_RUNS:,} at most")
    numbers = random.Random(check_seed(node.get("seed", 0), f"{where}: seed"))
    for _ in range(node["draws"]):
        yield _flat({name: _drawn(spec, f"{where}: {name}", numbers.random()) for name, spec in over.items()}, where)


def _drawn(spec: Any, where: str, share: float) -> Any:
    """Return the value at this share of a list or of a range."""
    if isinstance(spec, list) and spec:
        return spec[int(share * len(spec))]
    if not isinstance(spec, Mapping) or not {"low", "high"} <= spec.keys() <= {"low", "high", "log"}:
        raise ValueError(f"{where} is {spec!r}; expected a list, or low, high and perhaps log: true")
    low, high, log = spec["low"], spec["high"], spec.get("log", False)
    if (
        not all(is_real(end) and math.isfinite(end) for end in (low, high))
        or not isinstance(log, bool)
        or not low < high
        or (log and low <= 0)
    ):
        raise ValueError(f"{where} is {spec!r}; expected low below high, both above 0 with log: true")
    whole = isinstance(low, int) and isinstance(high, int)  # both ends can be drawn
    ends = (low - 0.5, high + 0.5) if whole else (low, high)
    if log:
        value = math.exp(math.log(ends[0]) + share * (math.log(ends[1]) - math.log(ends[0])))
    else:
        value = ends[0] + share * (ends[1] - ends[0])
    return min(max(math.floor(value + 0.5) if whole else float(f"{value:.4g}"), low), high)
