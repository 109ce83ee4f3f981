"""``ppl-vae compare --train true``: estimators from the same start, on the same data, evaluated in the same way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from ppl_vae import comparison, plots, runs
from ppl_vae.cli import estimators
from ppl_vae.cli.folders import folder_for
from ppl_vae.cli.telling import teller
from ppl_vae.cli.words import RACED
from ppl_vae.configuration.config import Config
from ppl_vae.evidence.log_evidence import Method


def race(
    settings: Config,
    *,
    objectives: str | None = None,
    particles: int | list[int] | None = None,
    seeds: int | list[int] = 3,
    evaluate_every: int | None = None,
    evaluation_size: int = 1000,
    split: Literal["train", "validation", "test"] | None = None,
    evidence: Method = "auto",
    evidence_particles: int = 1000,
    target: float | None = None,
    max_seconds: float | None = None,
    compile: Literal["graph", "full", "off"] = "graph",
    out: str | None = None,
    jobs: int | None = None,
) -> list[str]:
    """Train the same model under each estimator, and evaluate log p(x) on the way.

    Args:
        settings: The model and its training.
        objectives: The estimators, as at fixed parameters; by default ELBO, STL, IWAE and DReG, for discrete latents
            REINFORCE with the leave-one-out baseline, DisARM for bits, VIMCO, RWS and GumbelSoftmaxELBO.
        particles: K, one number or a list; 8 by default.
        seeds: How many seeds, from 0, or a list of seeds. A seed sets initial parameters, order of the data, and noise.
        evaluate_every: Epochs between two evaluations; a tenth of all epochs by default.
        evaluation_size: Evaluate the first so many data.
        split: train, validation or test; by default validation (or another split if validation has no rows).
        evidence: How to find log p(x); auto is exact for latents of up to two dimensions, few discrete states and
            linear-Gaussian models, and importance sampling from q(z|x) otherwise.
        evidence_particles: K of importance sampling.
        target: A value of log p(x), nats per datum; the race times when each run first crosses it.
        max_seconds: Stop each run after so many seconds of training.
        compile: How a step runs: graph needs no compiler; full compiles for up to a minute in each run.
        out: The folder to write to; by default runs/compare-NAME, or the first of compare-NAME-2, ... that is free.
        jobs: Train in so many processes of one thread each, -1 for one on each core; by default in this process. The
            seconds of runs that share the machine are rough.
    """
    folder = folder_for(out, runs.next_free(Path("runs") / f"compare-{settings.name}"))
    if settings.values["regularizer"] is not None:
        raise ValueError(
            "--regularizer has no part in a race of objectives, which its --config names; leave it out there"
        )
    asked = None if objectives is None else estimators.read_objectives(objectives)
    k = 8 if particles is None else particles
    if asked is not None:
        comparison.contenders(asked, k)
    dataset = settings.build_dataset()
    first = settings.build_vae(dataset)
    caveat = first.check_support(dataset)
    there = next(name for name in ("validation", "test", "train") if len(getattr(dataset, name)))
    columns = next(dataset.train.still().batches(min(2, len(dataset.train))))
    arguments = settings.build_fit_arguments()
    tell = teller(log=True)
    interrupted = False
    try:
        found = comparison.race(
            lambda seed: replace(settings, values=settings.values | {"seed": seed}).build_vae(dataset),
            dataset,
            objectives=asked or estimators.defaults_for(first, columns, racing=True),
            num_particles=k,
            seeds=seeds,
            evaluate_every=evaluate_every,
            evaluation_size=evaluation_size,
            split=split or there,
            evidence=evidence,
            evidence_particles=evidence_particles,
            target=target,
            max_seconds=max_seconds,
            compile=compile,
            progress=tell,
            jobs=jobs,
            **{name: arguments[name] for name in (*RACED, "device")},
        )
    except comparison.Interrupted as error:  # what has finished is kept
        found, interrupted = error.race, True
    lines = estimators.write(
        found,
        folder,
        "race",
        title=f"{settings.name}: trained on {dataset.name} under {len(found.contenders)} estimators",
        facts={"config": settings.values},
        caveat=caveat,
        pictures={"race": plots.training_race},
        tell=tell,
    )
    if interrupted:
        print("\n".join(lines))
        raise KeyboardInterrupt
    return lines
