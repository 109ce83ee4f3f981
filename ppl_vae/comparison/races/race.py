"""The training race: estimators with the same start, data and number of steps, evaluated in the same way."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import pyro
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ppl_vae._jobs import Lost, check_jobs, run_all, workers
from ppl_vae._scopes import seeded
from ppl_vae._team import refuse_shared
from ppl_vae._validation import check_choice, check_positive, check_positive_int, is_integer
from ppl_vae.comparison.contenders import contenders
from ppl_vae.comparison.races.heats import Heat, OnRun, Starts, Track, end_of, run_alone, silent
from ppl_vae.comparison.races.outcome import Race
from ppl_vae.comparison.races.runs import RaceRun
from ppl_vae.comparison.races.start import Entrant, MakeProgram, at_each_k, take_apart
from ppl_vae.comparison.races.watch import Evaluator, MakeEvidence, Watch
from ppl_vae.comparison.words import at_k
from ppl_vae.data import Dataset, Split, as_split
from ppl_vae.data.streams import Stream
from ppl_vae.evidence.log_evidence import Method
from ppl_vae.svi import OptimizerFactory
from ppl_vae.training import fit, resolve_device

_MOST_SEEDS = 10_000
_SPLITS = ("train", "validation", "test")


def race(
    make_program: MakeProgram,
    data: Any,
    *,
    objectives: object,
    epochs: int,
    num_particles: int | Iterable[int] = 8,
    seeds: int | Sequence[int] = 3,
    batch_size: int = 128,
    optimizer: OptimizerFactory | None = None,
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    clip_norm: float | None = None,
    evaluate_every: int | None = None,
    evaluation_size: int = 1000,
    split: str = "validation",
    evidence: Method | MakeEvidence = "auto",
    evidence_particles: int = 1000,
    target: float | None = None,
    max_seconds: float | None = None,
    compile: str = "graph",
    device: str | torch.device = "cpu",
    progress: Callable[[str], None] | None = None,
    on_run: OnRun | None = None,
    jobs: int | None = None,
) -> Race:
    r"""Train one program under several objectives, and evaluate log p(x) in the same way for all.

    For each seed, every contender starts from the same parameters, sees the data in the same order, draws its noise
    from the same seed and takes the same number of steps. Runs of a seed follow each other, so a machine that slows
    down does so for all of them; their order rotates by one from seed to seed. At step 0 and every few epochs, the race
    evaluates the same data with the same noise.

    Estimators are compared by the differences between runs of a seed (`Race.at_equal_steps`, `Race.at_equal_time`,
    `Race.time_to`). Their intervals are over seeds and against the best contender, whichever it is
    (`seeds.beside_the_best`). With three seeds, the intervals separate only differences of several standard deviations,
    and among eight contenders hardly any: take five seeds or more, or fewer contenders.

    Where to be careful:

    - One learning rate for all favours the estimator that it suits.
    - With more than two latents, log p(x) is estimated by importance sampling from the run's own q(z|x). The estimate
      is too low by what q misses: it is a lower bound in expectation, tighter where training made q wide.
      ``evidence="importance"`` (the defensive proposal) corrects that for single-site models and takes ten times as
      long or more.
    - Seconds depend on this machine and its other load. They exclude evaluation, and the time by which the first epoch
      exceeds later ones (capture of a step, compilation), which is in `RaceRun.setup`.
    - Under dynamic binarisation, the data are drawn from the same random stream as the estimator's noise. After the
      first step they differ between estimators.
    - A run that diverges or raises is recorded as failed, and the others go on. Ctrl-C raises `Interrupted`, which
      holds the runs that had finished.
    - With `jobs`, runs share the machine, which blurs their seconds. Each uses one thread, and figures depend on the
      number of threads in their last digits; they depend neither on the number of jobs nor on the backend.

    Slow: contenders x seeds x epochs of training, and each evaluation decodes `evaluation_size` x `evidence_particles`
    latents (for 784 pixels and two layers of 200, 1,000 x 1,000 take half a minute on one core).

    Args:
        make_program: A function from a seed to a `VAE` or a ``(model, guide)`` pair; called once per seed, with torch's
            generator at that seed.
        data: The training data, and the data of the evaluation: a `Dataset`; or training data alone, in any other form
            that `data.as_split` takes but a loader, with ``split="train"``.
        objectives: Objectives as `comparison.contenders` takes them. In a mapping an entry may bring its own program:
            ``{"relaxed": (objective, make_program)}``, or an `Entrant`. Each run has a fresh copy of its objective, and
            of an optimiser that keeps a state (of `pyro.optim`).
        epochs: The number of epochs of every run.
        num_particles: One K or several.
        seeds: The number of seeds (0, 1, ...), or a sequence of seeds.
        batch_size: Data per step.
        optimizer: A function from parameters to a torch optimiser, the same for all; Adam at 1e-3 by default.
        scheduler: A function from the optimiser to a learning-rate scheduler, which steps once per epoch.
        clip_norm: Largest norm of the gradient; None does not clip.
        evaluate_every: Epochs between two evaluations; a tenth of all by default. The last epoch is always evaluated.
        evaluation_size: The number of data in the evaluation, the first of the split.
        split: The split of the evaluation: ``"validation"``, ``"test"`` or ``"train"``.
        evidence: How to find log p(x). ``"auto"`` is exact for a `VAE` of up to two latents, of few discrete states, or
            linear-Gaussian, else importance sampling from q(z|x). Or a method of `evaluation.log_evidence`, or your own
            function ``evidence(program, *columns)`` -> `Evidence`.
        evidence_particles: K of importance sampling.
        target: A log p(x), nats per datum, whose first crossing is timed; choose it before the race, not after.
        max_seconds: The training time after which a run stops; None never stops it.
        compile: How a step runs, see `SVI`.
        device: The device of program and data.
        progress: Called with a short message after every evaluation and failure.
        on_run: Called with each run and its trained program, in evaluation mode, before its parameters are put back.
        jobs: How many processes train, each on one thread; -1 is one on each core. 1 trains in this process; None too,
            unless a ``joblib.parallel_config`` is active, whose backend then trains. `make_program`, data and
            objectives are pickled.

    Raises:
        Interrupted: If Ctrl-C ended the race after its first run; a `KeyboardInterrupt`.
        TypeError: If `data` are a loader or of no kind that `data.as_split` takes, or `make_program` returns no
            program.
        ValueError: If an argument is out of range, the split is empty, or no run of the first seed takes a step.

    Reference:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2015), https://arxiv.org/abs/1509.00519

    Example:
        >>> import ppl_vae as pv
        >>> digits = pv.data.load("digits")
        >>> def make_vae(seed):
        ...     return pv.VAE(digits, prior=pv.priors.StandardNormal(1), likelihood=pv.likelihoods.Bernoulli(),
        ...                   posterior=pv.posteriors.DiagonalNormal())
        >>> found = race(make_vae, digits, objectives=["ELBO", "MeanFieldELBO"], num_particles=1, seeds=1, epochs=1,
        ...              evaluation_size=20, compile="off")
        >>> [(run.name, run.stopped, run.kind, len(run.points)) for run in found.runs]
        [('ELBO', 'finished', 'exact', 2), ('MeanFieldELBO', 'finished', 'exact', 2)]
    """
    refuse_shared("race")
    began = time.perf_counter()
    if not isinstance(data, Dataset):
        whole = as_split(data)
        if isinstance(whole, Stream):
            raise TypeError(
                f"race: data is a {type(data).__name__}, whose batches may differ from run to run; read it once, by "
                "data.as_split(loader, in_memory=True)"
            )
        data = Dataset.of("data", whole)
    check_choice(split, _SPLITS, "race: split")
    check_positive_int(epochs, "race: epochs")
    check_positive_int(batch_size, "race: batch_size")
    check_positive_int(evaluation_size, "race: evaluation_size")
    check_positive_int(evidence_particles, "race: evidence_particles")
    every = max(1, epochs // 10) if evaluate_every is None else check_positive_int(evaluate_every, "evaluate_every")
    if max_seconds is not None:
        check_positive(max_seconds, "race: max_seconds")
    some = seeds_of(seeds, "race: seeds")
    looked_at: Split = getattr(data, split)
    if len(looked_at) == 0:
        held = ", ".join(repr(name) for name in _SPLITS if len(getattr(data, name)))
        raise ValueError(f"race: split is {split!r}, which is empty in {data!r}; expected one of {held}")
    where = resolve_device(device)
    with seeded(some[0]):
        bare, brought = take_apart(objectives)
        several = tuple(num_particles) if isinstance(num_particles, Iterable) else num_particles
        field = contenders(bare, several)
        entrants = at_each_k(brought, several)
    columns = cast("tuple[Tensor, ...]", looked_at.head(evaluation_size).to(where).columns)
    if scheduler is None:  # nothing uses the validation of `fit`
        data = replace(data, validation=Split(tuple(data.train.head(0).columns)))
    data = data.to(where)
    fitting = functools.partial(
        fit,
        data=data,
        scheduler=scheduler,
        clip_norm=clip_norm,
        epochs=epochs,
        batch_size=batch_size,
        compile=compile,
        device=where,
    )
    track = Track(
        fitting,
        Evaluator(columns, evidence, evidence_particles),
        functools.partial(Watch, every=every, epochs=epochs, max_seconds=max_seconds),
        optimizer=optimizer,
        steps=-(-len(data.train) // batch_size),
        progress=progress or (lambda text: None),
        on_run=on_run,
    )
    count = workers(check_jobs(jobs, "race: jobs"))
    if count > 1 and on_run is not None:
        raise ValueError("race: on_run takes the trained program, which stays in another process; give jobs=1")
    heats = [
        Heat(contender, (own := entrants.get(contender.key, Entrant(None))), own.make_program or make_program, seed)
        for i, seed in enumerate(some)  # turned, so that none is always first on a cold machine
        for contender in field.items[i % len(field) :] + field.items[: i % len(field)]
    ]
    settings = {
        "data": data.name,
        "epochs": epochs,
        "batch_size": batch_size,
        "steps": epochs * track.steps,
        "seeds": list(some),
        "split": split,
        "evaluation_size": len(columns[0]),
        "evaluate_every": every,
        "evidence_particles": evidence_particles,
        "max_seconds": max_seconds,
        "compile": compile,
    }
    machine = {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else str(where),
        "torch": torch.__version__,
        "threads": torch.get_num_threads() if count == 1 else 1,
    } | ({} if count == 1 else {"jobs": count})
    aim = None if target is None else float(target)
    runs: dict[int, RaceRun] = {}

    def done(i: int, run: RaceRun | Lost) -> None:
        runs[i] = heats[i].lost(run) if isinstance(run, Lost) else run
        if count > 1:
            track.progress(f"{len(runs)} of {len(heats)}: {heats[i].label}: {end_of(runs[i])}")
        first = [runs[j] for j in range(len(field)) if j in runs]
        if len(first) == len(field) and not any(one.steps for one in first):
            raise ValueError(f"race: no run took a step; {at_k(first[0])}: {first[0].reason}")

    def result(**more: Any) -> Race:
        in_order = tuple(runs[i] for i in sorted(runs))
        return Race(in_order, field.undefined, aim, settings | more, machine, time.perf_counter() - began)

    starts = Starts(data, where)
    tasks: list[Callable[..., Any]] = [functools.partial(heat.run, track, starts) for heat in heats]
    common: tuple[Any, ...] = ()
    if count > 1:
        tasks = [functools.partial(run_alone, i) for i in range(len(heats))]
        common = heats, replace(track, progress=silent), starts
    try:
        with pyro.get_param_store().scope():  # programs get a store of their own; the caller's stays as it is
            run_all(tasks, done, jobs=jobs, common=common, told=track.progress)
    except KeyboardInterrupt as error:
        if not runs:
            raise
        raise Interrupted(result(planned_runs=len(heats))) from error
    return result()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a race.

    Attributes:
        race: The runs that had finished.
    """

    def __init__(self, race: Race) -> None:
        super().__init__(f"{len(race.runs)} of {race.settings['planned_runs']} runs had finished")
        self.race = race


def seeds_of(seeds: int | Sequence[int], name: str = "seeds") -> tuple[int, ...]:
    """Return the given seeds, or the first `seeds` integers from 0.

    Raises:
        ValueError: If a seed is not an integer from 0, a seed occurs twice, or there are none or more than 10,000.
    """
    some = range(min(seeds, _MOST_SEEDS + 1)) if is_integer(seeds) else seeds
    if (
        not isinstance(some, Sequence)
        or not 0 < len(some) <= _MOST_SEEDS
        or not all(is_integer(s) and 0 <= s < 2**63 for s in some)
        or len(set(some)) < len(some)
    ):
        raise ValueError(
            f"{name} is {seeds!r}; expected how many, or different integers from 0, as in (0, 1, 2), and at most "
            f"{_MOST_SEEDS:,}"
        )
    return tuple(some)
