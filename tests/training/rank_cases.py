"""What `test_ranks.py` runs in several processes, by name; each case returns what can be sent back."""

from __future__ import annotations

import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as pyro_dist
import torch
import torch.distributed as dist
import torch.multiprocessing
import zoo
from torch import nn

import ppl_vae as pv
from ppl_vae import likelihoods, networks, objectives, posteriors, priors, regularizers
from ppl_vae.data import Dataset, Split

TRAIN, VALIDATION, BATCH = 50, 20, 16  # the last batch has two rows, fewer than four processes
ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


def made(x: torch.Tensor, dynamic: bool = False) -> Dataset:
    """A data set of given rows, without a test part."""
    parts = (x[:TRAIN], x[TRAIN:], x[:0])
    return Dataset("made", *(Split((part,), dynamic=dynamic) for part in parts))


def bits(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Rows of six bits."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(TRAIN + VALIDATION, 1, 2, 3, generator=generator) < 0.4).to(dtype)


def trained(program: Any, data: Any, **options: Any) -> dict[str, Any]:
    """Train for three epochs, and return the history without times, and the parameters."""
    options = {
        "epochs": 3,
        "batch_size": BATCH,
        "seed": 1,
        "device": "cpu",
        "compile": "off",
        "optimizer": ADAM,
    } | options
    run = pv.fit(program, data, **options)
    history = [{k: v for k, v in record.items() if k not in ("seconds", "rate")} for record in run.history]
    is_module = isinstance(program, nn.Module)
    parts = [*program.parameters(), *program.buffers()] if is_module else run.state()["parameters"].values()
    return {
        "history": history,
        "parameters": [p.detach().clone() for p in parts],
        "why_eager": run.why_eager,
        "stopped": run.stopped,
        "state": run.state(),
        "processes": run.processes,
    }


def objective(name: str, dtype: str = "float64", compile: str = "off") -> dict[str, Any]:
    """Train by an objective of the zoo."""
    entry = next(e for e in zoo.OBJECTIVES + zoo.PYRO_OBJECTIVES if e.name == name)
    program = entry.program  # found now: what it fits is cached, and draws when it is first found
    torch.manual_seed(5)
    kind = getattr(torch, dtype)
    found = entry.make(3)
    for part in pv.capture.modules_of(found):
        part.to(kind)  # moving averages as exact as the rest
    return trained(program.vae().to(kind), made(bits(kind)), objective=found, compile=compile)


def program(name: str, compile: str = "off") -> dict[str, Any]:
    """Train a program of the zoo."""
    entry = next(p for p in zoo.programs() if p.name == name)
    torch.manual_seed(5)
    vae = entry.vae((1, 4, 4) if entry.network.images else (1, 2, 3), max(2, entry.min_latent)).double()
    discrete = (
        not getattr(vae.p_z(), "has_rsample", True) or "Vector" in entry.prior.name or "OneHot" in entry.prior.name
    )
    chosen = objectives.REINFORCE(3) if discrete else objectives.ELBO(3)
    torch.manual_seed(7)
    x = entry.likelihood.draw(TRAIN + VALIDATION, *vae.x_shape).double()
    return trained(vae, made(x), objective=chosen, compile=compile)


def vae_of(**pieces: Any) -> pv.VAE:
    """A small VAE, whose parameters differ between processes at first."""
    torch.manual_seed(5 + (dist.get_rank() if dist.is_initialized() else 0))
    given: dict[str, Any] = {
        "prior": priors.StandardNormal(2),
        "likelihood": likelihoods.Bernoulli(networks.MLP([9])),
        "posterior": posteriors.DiagonalNormal(networks.MLP([9])),
    }
    return pv.VAE((1, 2, 3), **given | pieces).double()


def dynamic() -> dict[str, Any]:
    """Data that are binarised afresh in each batch."""
    grey = torch.rand(TRAIN + VALIDATION, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return trained(vae_of(), made(grey, dynamic=True), compile="graph")


def optimiser() -> dict[str, Any]:
    """Clipping, a schedule, early stopping."""
    schedule = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.5)
    return trained(vae_of(), made(bits()), clip_norm=0.5, scheduler=schedule, early_stopping=2, epochs=4)


def items() -> dict[str, Any]:
    """A torch `Dataset`, item by item."""
    x = bits()
    rows = [x[i] for i in range(TRAIN)]

    class Items:
        def __len__(self) -> int:
            return TRAIN

        def __getitem__(self, i: int) -> torch.Tensor:
            return rows[i]

    return trained(vae_of(), Items(), validation=x[TRAIN:])


def bare_parameters() -> dict[str, Any]:
    """A Pyro program with bare ``pyro.param``, in its own store."""
    pyro.clear_param_store()

    def model(x: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(6, dtype=torch.float64))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", pyro_dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            logits = loc + z.sum(-1, keepdim=True)
            pyro.sample("x", pyro_dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        weight = pyro.param("weight", torch.zeros(6, 2, dtype=torch.float64))
        scale = pyro.param("scale", torch.ones(2, dtype=torch.float64), constraint=pyro_dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", pyro_dist.Normal(x @ weight, scale).to_event(1))

    x = bits().flatten(1)
    found = trained((model, guide), (x[:TRAIN],), validation=(x[TRAIN:],), objective=pyro.infer.Trace_ELBO())
    pyro.clear_param_store()
    return found


def global_latent() -> dict[str, Any]:
    """A latent outside of the plate of the data."""
    pyro.clear_param_store()

    def model(x: torch.Tensor) -> None:
        loc = pyro.sample("loc", pyro_dist.Normal(torch.zeros(6, dtype=x.dtype), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", pyro_dist.Bernoulli(logits=loc).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        loc = pyro.param("q_loc", torch.ones(6, dtype=torch.float64))
        pyro.sample("loc", pyro_dist.Normal(loc, 0.1).to_event(1))

    x = bits().flatten(1)
    return trained((model, guide), (x[:TRAIN],), objective=pyro.infer.Trace_ELBO())


def refused(name: str) -> dict[str, Any]:
    """What couples a batch, or cannot be shared."""
    x, vae = bits(), vae_of()
    cases: dict[str, Callable[[], Any]] = {
        "batch norm": lambda: trained(
            vae_of(posterior=posteriors.DiagonalNormal(networks.MLP([9], batch_norm=True))), made(x)
        ),
        "OptimalSigmaNormal": lambda: trained(
            vae_of(likelihood=likelihoods.OptimalSigmaNormal(networks.MLP([9]))), made(x)
        ),
        "TotalCorrelation": lambda: trained(vae, made(x), regularizer=regularizers.TotalCorrelation(TRAIN)),
        "InfoVAE": lambda: trained(vae, made(x), regularizer=regularizers.InfoVAE(0.5, 10.0)),
        "FreeBits": lambda: trained(vae, made(x), regularizer=regularizers.FreeBits(2.0)),
        "NVIL": lambda: trained(vae, made(x), objective=objectives.NVIL()),
        "a latent outside": global_latent,
        "loader": lambda: trained(vae, torch.utils.data.DataLoader(x, batch_size=8)),
        "other data": lambda: trained(vae, made(x.roll(dist.get_rank(), 0))),
        "batch_size": lambda: trained(vae, made(x), batch_size=1),
        "table": lambda: trained(
            vae_of(posterior=posteriors.DiagonalNormal(networks.TableEncoder(network=networks.MLP([9])))), made(x)
        ),
    }
    return cases[name]()


def after(steps: int, of: int | None = None) -> Callable[[], bool]:
    """A function that asks to stop with its `steps`-th call; on the process `of` alone, or on all."""
    calls = iter(range(1, sys.maxsize))

    def stop() -> bool:
        here = dist.get_rank() if dist.is_initialized() else 0
        return next(calls) == steps and of in (None, here)

    return stop


def stopped(steps: int, of: int | None = None) -> dict[str, Any]:
    """A run that is asked to end in the midst of its second epoch."""
    return trained(vae_of(), made(bits()), stop=after(steps, of))


def resumed(state: str) -> dict[str, Any]:
    """The rest of a run whose state lies in a file."""
    return trained(vae_of(), made(bits()), seed=None, resume=pv.checkpoints.load(state))


def gone_on(steps: int) -> dict[str, Any]:
    """A run that is asked to end, and goes on from its state in the same processes."""
    state = stopped(steps)["state"]
    return trained(vae_of(), made(bits()), seed=None, resume=state)


def own_noise(runs: int = 16) -> dict[str, Any]:
    """The gradients of a posterior whose noise cannot be split, each from one step at fixed parameters."""
    gradients = []
    still = functools.partial(torch.optim.SGD, lr=0.0)
    for seed in range(runs):
        vae = vae_of(prior=priors.HypersphericalUniform(2), posterior=posteriors.PowerSpherical(networks.MLP([9])))
        torch.manual_seed(3)
        for p in vae.parameters():
            p.data.normal_(std=0.5)
        pv.fit(vae, (bits()[:7],), epochs=1, batch_size=7, seed=seed, device="cpu", compile="off", optimizer=still)
        gradients.append(torch.cat([p.grad.flatten() for p in vae.parameters()]))
    return {"gradients": torch.stack(gradients)}


def parted() -> dict[str, Any]:
    """An optimiser that differs between the processes."""
    lr = 1e-2 * (1 + (dist.get_rank() if dist.is_initialized() else 0))
    return trained(vae_of(), made(bits()), optimizer=functools.partial(torch.optim.Adam, lr=lr))


def killed() -> dict[str, Any]:
    """A process that is killed after six steps."""
    calls = iter(range(1, sys.maxsize))

    def stop() -> bool:
        if next(calls) == 6 and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    try:
        return trained(vae_of(), made(bits()), stop=stop)
    except pv.training.RankLostError as error:
        return {"error": str(error), "state": error.good_state}


def callbacks() -> dict[str, Any]:
    """How often a callback is called on this process."""

    class Count:
        calls = 0

        def on_epoch(self, run: Any, record: Any) -> None:
            self.calls += 1

    count = Count()
    trained(vae_of(), made(bits()), callbacks=[count])
    return {"calls": count.calls}


def bf16() -> dict[str, Any]:
    """Products in bfloat16, of which a sum over a batch is not that over its parts."""
    return trained(vae_of().float(), made(bits(torch.float32)), precision="bf16")


def frozen() -> dict[str, Any]:
    """A parameter that does not train and a buffer, which differ between processes at first."""
    vae = vae_of()
    next(vae.parameters()).requires_grad_(False)
    vae.register_buffer("start", next(vae.parameters()).detach().clone())
    return trained(vae, made(bits()))


def coupled_late(epochs: int, resume: str | None = None) -> dict[str, Any]:
    """An objective that couples the data once it is high enough, as it is after epoch 3."""

    def objective(weights: Any) -> torch.Tensor:
        log_w = weights.log_w
        return log_w.mean(0) - 2 * (log_w.mean() + 4.5).clamp(min=0) ** 2

    adam = functools.partial(torch.optim.Adam, lr=3e-2)
    state = None if resume is None else pv.checkpoints.load(resume)
    seed = 1 if resume is None else None
    return trained(vae_of(), made(bits()), objective=objective, optimizer=adam, epochs=epochs, seed=seed, resume=state)


def failing_callback() -> dict[str, Any]:
    """A callback, on the first process alone, that raises; the processes can train again afterwards."""

    class Full:
        def on_epoch(self, run: Any, record: Any) -> None:
            raise OSError("the disk is full")

    with suppress(OSError, pv.training.RankLostError):
        trained(vae_of(), made(bits()), callbacks=[Full()])
        raise AssertionError("the error is lost")
    return trained(vae_of(), made(bits()))


def changing_callback() -> dict[str, Any]:
    """A callback, on the first process alone, that changes the objective there."""
    regularizer = regularizers.KLWeight(0.5)

    class Change:
        def on_epoch(self, run: Any, record: Any) -> None:
            regularizer.weight.stop = 1.0

    return trained(vae_of(), made(bits()), regularizer=regularizer, callbacks=[Change()])


def large() -> dict[str, Any]:
    """A likelihood with the variance of the batch, whose halves hardly differ in float32."""
    likelihood = likelihoods.OptimalSigmaNormal(networks.MLP([9]))
    x = torch.rand(1000, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    return trained(vae_of(likelihood=likelihood).float(), (x,), batch_size=1000, epochs=1)


def differing(what: str) -> dict[str, Any]:
    """A call of `fit` that differs between the processes."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    calls: dict[str, Callable[[], Any]] = {
        "shapes": lambda: trained(vae_of(likelihood=likelihoods.Bernoulli(networks.MLP([9 + rank]))), made(bits())),
        "arguments": lambda: trained(vae_of(), made(bits()), validate_every=1 + rank),
        "objectives": lambda: trained(vae_of(), made(bits()), regularizer=regularizers.KLWeight(1.0 + rank)),
        "one datum": lambda: trained(vae_of(), (bits()[:1],)),
        "race": lambda: pv.comparison.race(lambda seed: vae_of(), made(bits()), objectives=["ELBO"], epochs=1),
    }
    return calls[what]()


_ALL = (objective, program, dynamic, optimiser, items, bare_parameters, refused)
_ALL += (bf16, frozen, coupled_late, failing_callback, changing_callback, large, differing)
_ALL += (stopped, resumed, gone_on, own_noise, parted, killed, callbacks)
CASES = {function.__name__: function for function in _ALL}


def run_case(call: tuple[Any, ...]) -> dict[str, Any]:
    """Run one case, and return its result, or its error, with the warnings."""
    name, *arguments = call
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = CASES[name](*arguments)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
    return {**result, "warnings": [str(w.message) for w in caught if w.category is UserWarning]}


def _work(rank: int, count: int, folder: str, calls: list[tuple[Any, ...]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    results = {}
    for call in calls:
        results[call] = run_case(call)
        torch.save(results, Path(folder) / f"{rank}.pt")
    with suppress(RuntimeError):
        dist.destroy_process_group()


def in_processes(count: int, folder: Path, calls: list[tuple[Any, ...]]) -> list[dict[tuple[Any, ...], dict[str, Any]]]:
    """Run cases one after the other in `count` processes, and return the results of each process."""
    folder.mkdir()
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(rank, count, str(folder), calls)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [torch.load(path, weights_only=False) for path in sorted(folder.glob("*.pt"))]
