"""Estimators side by side at fixed parameters: one batch, the same noise, thousands of gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae._home import at_home, home_of
from ppl_vae._jobs import check_jobs, workers
from ppl_vae._machine import check_fits, processor
from ppl_vae._scopes import evaluation_mode, threads
from ppl_vae._tensors import as_numbers, moved
from ppl_vae._validation import check_positive_int
from ppl_vae._words import one_line
from ppl_vae.capture import buffers_of, modules_of, untouched
from ppl_vae.comparison.contenders import contenders
from ppl_vae.comparison.fixed.blocks import NameBlock, find_parameters
from ppl_vae.comparison.fixed.comparison import Comparison
from ppl_vae.comparison.fixed.minibatch import stands_alone
from ppl_vae.comparison.fixed.replicates import LEAST_REPLICATES, Elsewhere, store_state
from ppl_vae.comparison.fixed.results import KnownEvidence, Row
from ppl_vae.comparison.fixed.rows import Progress, Rows
from ppl_vae.data import Split
from ppl_vae.data.forms import form_of
from ppl_vae.data.held import split_of
from ppl_vae.evidence.log_evidence import log_evidence as find_log_evidence
from ppl_vae.evidence.results import Evidence
from ppl_vae.objectives.losses import Program
from ppl_vae.vae import VAE

_HAVE_MODES = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)


@at_home(float64=True)
def compare(
    program: VAE | Program,
    data: Any,
    *,
    objectives: object,
    particles: int | Iterable[int] = (1, 8, 64),
    replicates: int = 1000,
    reference: object | None = "own",
    blocks: NameBlock | None = None,
    seed: int = 0,
    log_evidence: Tensor | Evidence | float | None = None,
    minibatch: bool = True,
    evaluation: bool = True,
    size: int = 8,
    progress: Progress | None = None,
    jobs: int | None = None,
) -> Comparison:
    r"""Compare estimators of the bound and of its gradient on one batch, at the current parameters.

    Every estimator takes `replicates` steps at fixed parameters. Replicate r of each estimator starts from the same
    seed: estimators that draw alike share their noise, and their gradient differences are paired. The comparison
    reports

    - the value and its distance from log p(x);
    - the gradient's norm, variance, signal-to-noise and bias against a reference, separately for encoder, decoder and
      prior;
    - time and memory of a step, and the cost of a given precision;
    - how the estimator's noise compares with the noise of the choice of data.

    Squared norms are free of the noise of R replicates (they are products of different groups of replicates). The 95%
    intervals are bootstrapped over groups or replicates.

    **Says nothing about training**: an estimator that is good here may lead elsewhere, and a ranking at initialisation
    may be reversed at the end (STL's noise vanishes only near the true posterior). R replicates show only a part of a
    heavy tail (of importance weights at large K, or of CUBO). Where a heavy tail forbids a claim of bias, the
    comparison makes none (`Block.bias_unclear`; `zero_bias` has the rule). A learned baseline is used in the state in
    which it is given.

    **Slow** for large batches: the cost is (estimators) x (R + 160) steps. Steps run as captured graphs where possible;
    `Row.why_eager` gives the reason where not.

    Args:
        program: The `VAE`, or a ``(model, guide)`` pair.
        data: The batch: an array or tensor, the program's argument, or a tuple of its arguments. Or more data, whose
            first `size` rows are the batch: a split, a memory map that `data.as_split` leaves on disk, or any other
            form that it takes.
        objectives: What to compare, see `contenders`.
        particles: One K or several.
        replicates: R, at least 20.
        reference: The objective whose expected gradient each estimator is compared with. ``"own"`` takes the
            objective's attribute ``reference`` (IWAE for DReG). An objective, in any form that `objectives` takes,
            serves for all. None compares with nothing.
        blocks: A function from a parameter's name (``"likelihood.logits.network.0.weight"``) to the name of its block,
            or to None to leave it out. The default is encoder, decoder and prior of a `VAE`, guide and model of another
            program.
        seed: For all noise; the global random state stays as it is.
        log_evidence: log p(x) if it is known, for each datum or the mean. By default it is computed, exactly where
            possible.
        minibatch: Whether to measure the noise of the choice of data, which takes 80 or more steps per estimator. Those
            arguments that are as long as the batch count as data.
        evaluation: Whether modules are in evaluation mode during the comparison: no dropout, and batch normalisation
            by its running statistics. Running statistics never change, with or without it.
        size: The number of rows taken from a split.
        progress: Called with short messages about the work in progress.
        jobs: How many processes take replicates, each on one thread; -1 is one on each core. 1 takes them in this one;
            None too, unless a ``joblib.parallel_config`` is active, whose backend then takes them. Times and memory are
            measured here, on one thread too then. Figures depend on the number of threads in their last digits, and not
            on `jobs`. Program and objectives are pickled.

    Returns:
        The comparison. An estimator that fails has a row with the reason.

    Raises:
        TypeError: If an objective, or the data, is of another kind.
        ValueError: If a name is unknown, there are fewer than 20 replicates, or the program has no parameter.

    Reference:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        https://arxiv.org/abs/1802.04537

    Example:
        >>> from ppl_vae import likelihoods, posteriors, priors
        >>> vae = VAE((4,), prior=priors.StandardNormal(2), likelihood=likelihoods.Normal(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> found = compare(vae, torch.zeros(3, 4), objectives=["ELBO", "MeanFieldELBO"], particles=1, replicates=40)
        >>> [(row.name, row.kind, sorted(row.blocks)) for row in found.rows]
        [('ELBO', 'lower', ['decoder', 'encoder']), ('MeanFieldELBO', 'lower', ['decoder', 'encoder'])]
    """
    if check_positive_int(replicates, "compare: replicates") < LEAST_REPLICATES:
        raise ValueError(f"compare: replicates is {replicates}; expected at least {LEAST_REPLICATES}, such as 1000")
    count = workers(check_jobs(jobs, "compare: jobs"))
    began = time.perf_counter()
    vae = program if isinstance(program, VAE) else None
    pair: Program = (program.model, program.guide) if isinstance(program, VAE) else program
    chosen = contenders(objectives, particles)
    modules = modules_of(*pair)
    told = progress or (lambda text: None)
    mode = evaluation_mode(*modules) if evaluation else nullcontext()
    with mode, untouched(buffers_of(modules)), nullcontext() if count == 1 else threads(1):
        torch.manual_seed(seed)
        batch = _take_batch(program, data, size, modules)
        most = max(contender.num_particles for contender in chosen)
        what = f"{most} particles of {len(batch[0])} data"
        check_fits(most * batch[0].numel(), what, "particles", batch[0].device)
        parameters = find_parameters(pair, batch, vae=vae, name_block=blocks)
        told("log p(x)")
        known, note = _known_evidence(program, batch, log_evidence, seed)
        notes = [] if note is None else [note]
        if minibatch and vae is None and len(batch) > 1 and not stands_alone(pair, batch, seed):
            minibatch = False
            notes.append(
                "what the choice of data adds is not told: the log-weight of a datum depends on the rest of its batch "
                "(an argument as long as the batch counts as data; constants may be buffers of a module)"
            )
        away = None
        if count > 1:
            states = [module.state_dict() for module in modules]
            away = Elsewhere(program, states, store_state(), blocks, evaluation, jobs, count)
        rows = Rows(pair, batch, parameters, replicates, seed, minibatch, reference, known, told, notes, away)
        found: list[Row] = []
        for k in sorted({c.num_particles for c in chosen}):
            found += rows.of([c for c in chosen if c.num_particles == k])
    if evaluation and any(m.training and isinstance(m, _HAVE_MODES) for module in modules for m in module.modules()):
        notes.append("modules were in evaluation mode: no dropout, and batch normalisation by its running statistics")
    leaf = next(iter(parameters.leaves.values()))
    machine = {
        "device": str(leaf.device),
        "name": torch.cuda.get_device_name(leaf.device) if leaf.is_cuda else processor(),
        "threads": torch.get_num_threads() if count == 1 else 1,
        "torch": torch.__version__,
        "dtype": str(leaf.dtype).removeprefix("torch."),
    }
    return Comparison(
        rows=tuple(found),
        undefined=chosen.undefined,
        evidence=known,
        replicates=replicates,
        seed=seed,
        data_shape=tuple(batch[0].shape),
        machine=machine,
        seconds=time.perf_counter() - began,
        notes=tuple(dict.fromkeys(notes)),
        split_size=len(data) if isinstance(data, Split) and len(data) > len(batch[0]) else None,
    )


def _take_batch(program: VAE | Program, data: Any, size: int, modules: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """Return the batch, on the device of the parameters and in their dtype; integers stay so, but for x of a VAE.

    Args:
        program: The program.
        data: The batch, or more data.
        size: The number of rows taken from a split.
        modules: The modules of the program.

    Raises:
        TypeError: If the data are none of these.
        ValueError: If the data are empty, or whole numbers that may be pixels or do not fit.
    """
    if isinstance(data, Tensor | tuple | list) and all(isinstance(t, Tensor) for t in data):
        tensors = (data,) if isinstance(data, Tensor) else tuple(data)
    else:
        split = split_of(data, form_of(program, modules))
        whole = isinstance(data, np.ndarray | tuple) and isinstance(split.x, Tensor)  # a large memory map is not
        part = split if whole else split.head(check_positive_int(size, "compare: size"))
        tensors = cast("tuple[Tensor, ...]", part.columns)
    if not tensors or not tensors[0].dim() or not len(tensors[0]):
        raise ValueError(
            f"compare: data has shape {tuple(tensors[0].shape) if tensors else ()}; expected (batch, ...), batch > 0"
        )
    if (like := home_of(program)) is not None:
        tensors = moved(tensors, like.device, like.dtype)
    if isinstance(program, VAE) and not tensors[0].is_floating_point():
        dtype = torch.get_default_dtype() if like is None else like.dtype
        tensors = (as_numbers(tensors[0], dtype, "compare: data"), *tensors[1:])
    return tuple(t.detach().contiguous() for t in tensors)


def _known_evidence(
    program: VAE | Program, batch: tuple[Tensor, ...], given: Tensor | Evidence | float | None, seed: int
) -> tuple[KnownEvidence | None, str | None]:
    """Return the mean of log p(x) over the batch, and a note for the reader if it is not exact.

    Args:
        program: The `VAE`, or model and guide.
        batch: The data.
        given: log p(x) if it is known: the mean, one number for each datum, or an `Evidence` with its error.
        seed: For an estimate.

    Raises:
        ValueError: If `given` has another number of data.
    """
    if given is not None and not isinstance(given, Evidence):
        values = torch.as_tensor(given).detach().double()
        if values.dim() and values.shape != (len(batch[0]),):
            raise ValueError(
                f"compare: log_evidence has shape {tuple(values.shape)}; expected one number for each datum, "
                f"({len(batch[0])},), or their mean"
            )
        return KnownEvidence(float(values.mean()), "given", 0.0, True), None
    if given is None:
        try:
            given = find_log_evidence(program, *batch[:2], seed=seed)
        except Exception as error:  # a program that trains but has no log p(x): the other figures remain
            return None, f"log p(x) could not be had: {one_line(error)}"
    if len(given) != len(batch[0]):
        raise ValueError(f"compare: log_evidence is of {len(given)} data; expected the {len(batch[0])} of the batch")
    if given.kind == "exact":
        wrong, note = float(given.error.mean()), None
    else:
        wrong = float(given.error.square().sum().sqrt()) / len(given)
        bad = int((~given.error.isfinite()).sum())
        unreliable = f", unreliable for {bad} of {len(given)} data" if bad else ""
        note = f"log p(x) is an estimate by {given.method}, a {given.kind} bound in expectation{unreliable}"
    return KnownEvidence(given.mean, given.method, math.inf if math.isnan(wrong) else wrong, note is None), note
