"""Estimators side by side at fixed parameters: one batch, the same noise, thousands of gradients."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae._scopes import evaluation_mode
from ppl_vae._validation import check_positive_int
from ppl_vae.capture import buffers_of, modules_of, untouched
from ppl_vae.comparison.contenders import contenders
from ppl_vae.comparison.fixed.batch import known_evidence, take_batch
from ppl_vae.comparison.fixed.blocks import NameBlock, find_parameters
from ppl_vae.comparison.fixed.comparison import Comparison
from ppl_vae.comparison.fixed.results import Row
from ppl_vae.comparison.fixed.rows import LEAST_REPLICATES, Progress, Rows
from ppl_vae.data import Split
from ppl_vae.evidence.results import Evidence
from ppl_vae.objectives.losses import Program
from ppl_vae.vae import VAE

_HAVE_MODES = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)


def compare(
    program: VAE | Program,
    data: Tensor | tuple[Tensor, ...] | Split,
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
) -> Comparison:
    r"""Compare estimators of the bound and of its gradient on one batch, at the parameters as they are.

    Every estimator takes `replicates` steps that move nothing; replicate r of each starts from the same seed, so that
    estimators that draw alike share their noise, and differences of gradients are paired. Of each are told: the value
    and its distance from log p(x); the gradient's norm, variance, signal-to-noise and bias against a reference, for
    encoder, decoder and prior apart; time and memory of a step, and what a given precision costs; and how its noise
    compares with that of the choice of data. The noise of R replicates is taken out of squared norms (products of
    different groups of replicates), and 95% intervals are bootstrapped over groups or replicates.

    **Says nothing of training**: an estimator that is good here may lead elsewhere; and a ranking at initialisation may
    turn round at the end (STL's noise vanishes only near the true posterior). A heavy tail, of importance weights at
    large K or of CUBO, is seen only as far as R replicates reach; where it forbids a claim of bias, none is made
    (`Block.bias_unclear`; `zero_bias` has the rule). A learned baseline is as good as the one given.

    **Slow** for large batches: time is (estimators) x (R + 160) steps. Steps run as captured graphs where they can be;
    `Row.why_eager` says why one does not.

    Args:
        program: The `VAE`, or a ``(model, guide)`` pair.
        data: The batch: the program's argument, or a tuple of them; or a split, of which the first `size` rows are.
        objectives: What to compare, see `contenders`.
        particles: The K at which, one or several.
        replicates: R, at least 20.
        reference: Whose expected gradient each is held against: ``"own"`` takes the objective's attribute ``reference``
            (IWAE for DReG); an objective in any form that `objectives` takes serves for all; None for nothing.
        blocks: From a parameter's name (``"likelihood.logits.network.0.weight"``) to a block's, or None to leave it
            out; by default encoder, decoder and prior of a `VAE`, guide and model of another program.
        seed: For all noise; the global random state is left alone.
        log_evidence: log p(x) if it is known, for each datum or the mean; by default it is computed, exactly where
            that can be done.
        minibatch: Whether to tell the noise of the choice of data, for 80 or more steps an estimator.
        evaluation: Whether to put modules into evaluation mode meanwhile: no dropout, and batch normalisation by its
            running statistics, which are never moved either way.
        size: How many rows of a split.
        progress: Is told what is being done.

    Returns:
        The comparison. An estimator that fails is a row that says why.

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
    began = time.perf_counter()
    vae = program if isinstance(program, VAE) else None
    pair: Program = (program.model, program.guide) if isinstance(program, VAE) else program
    chosen = contenders(objectives, particles)
    modules = modules_of(*pair)
    mode = evaluation_mode(*modules) if evaluation else nullcontext()
    with mode, untouched(buffers_of(modules)):
        torch.manual_seed(seed)
        batch = take_batch(data, size, modules)
        parameters = find_parameters(pair, batch.tensors, vae=vae, name_block=blocks)
        told = progress or _silent
        told("log p(x)")
        evidence, note = known_evidence(program, batch, log_evidence, seed)
        rows = Rows(pair, batch, parameters, replicates, seed, minibatch, reference, evidence, told, [])
        found: dict[int, Row] = {}
        for k in sorted({c.num_particles for c in chosen}):
            found |= rows.of({i: c for i, c in enumerate(chosen) if c.num_particles == k})
    order = sorted(found, key=lambda i: (found[i].num_particles, i))
    notes = [*([note] if note else []), *rows.notes]
    if evaluation and any(m.training and isinstance(m, _HAVE_MODES) for module in modules for m in module.modules()):
        notes.append("modules were in evaluation mode: no dropout, and batch normalisation by its running statistics")
    leaf = next(iter(parameters.leaves.values()))
    return Comparison(
        rows=tuple(found[i] for i in order),
        undefined=chosen.undefined,
        evidence=evidence,
        replicates=replicates,
        seed=seed,
        data_shape=tuple(batch.x.shape),
        machine=_machine(leaf),
        seconds=time.perf_counter() - began,
        notes=tuple(dict.fromkeys(notes)),
        split_size=len(data) if isinstance(data, Split) and len(data) > len(batch.x) else None,
    )


def _machine(leaf: Tensor) -> dict[str, Any]:
    name = torch.cuda.get_device_name(leaf.device) if leaf.is_cuda else platform.processor() or platform.machine()
    return {
        "device": str(leaf.device),
        "name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(leaf.dtype).removeprefix("torch."),
    }


def _silent(text: str) -> None:
    pass
