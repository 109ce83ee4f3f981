"""The function `fit`, which trains a program."""

from __future__ import annotations

import functools
import logging
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, get_args

import pyro
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ppl_vae._home import home_of
from ppl_vae._scopes import MatmulPrecision, Precision, rounded, untouched_random_state
from ppl_vae._team import Team
from ppl_vae._validation import check_choice, check_positive, check_positive_int, check_seed
from ppl_vae.capture import modules_of
from ppl_vae.data import Dataset
from ppl_vae.data.forms import form_of
from ppl_vae.data.held import split_of
from ppl_vae.data.streams import Stream, gathered
from ppl_vae.objectives import ELBO, Regularized, Regularizer
from ppl_vae.objectives.losses import Program
from ppl_vae.svi import ALONE, SVI, Compile, OptimizerFactory
from ppl_vae.training.choosing import device_of, resolve_compile, resolve_device
from ppl_vae.training.loop import Loop
from ppl_vae.training.ranks import Ranks
from ppl_vae.training.rehearsal import StrangersError
from ppl_vae.training.run import Callback, Run
from ppl_vae.vae import VAE

logger = logging.getLogger(__name__)


def fit(
    program: VAE | Program,
    data: Any,
    *,
    validation: Any = None,
    objective: object | None = None,
    regularizer: Regularizer | None = None,
    optimizer: OptimizerFactory | None = None,
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    epochs: int = 50,
    batch_size: int = 128,
    clip_norm: float | None = None,
    validate_every: int = 1,
    early_stopping: int | None = None,
    seed: int | None = None,
    device: str | torch.device = "auto",
    compile: str = "auto",
    precision: Precision = "full",
    matmul_precision: MatmulPrecision | None = None,
    callbacks: Sequence[Callback] = (),
    stop: Callable[[], bool] | None = None,
    resume: dict[str, Any] | None = None,
) -> Run:
    r"""Train a VAE, or any Pyro model and guide, by SVI.

    `fit` maximises the mean of the objective per datum. Before the first step it runs the program once on the first
    batch under Pyro's full validation (shapes, supports), without moving any state. Afterwards nothing is validated, so
    a program whose supports depend on the data may go wrong silently later. Values are then usually NaN: `fit` finds
    them within a hundred steps, puts the program back to its last good state, and raises `DivergedError`.

    The same seed gives the same parameters, bit by bit, on the CPU with the same number of threads. The global random
    state is left as it was. Trainings in threads of one process wait for each other, since Pyro's handlers and torch's
    random state are global to the process: run them in processes.

    Args:
        program: The `VAE`, or a pair of functions ``(model, guide)`` that take the columns of the data. `fit` moves the
            modules that they can reach (by methods, closures, globals that their code names) to the device, puts them
            into training and evaluation mode, and keeps them in the state.
        data: A `Dataset`, or all data to train on as `data.as_split` takes them: arrays, tensors or a tuple of them, a
            frame, a sparse matrix, an object with ``.X`` and ``.obs``, a torch `Dataset`, a `DataLoader` or another
            iterable of batches. A `VAE` takes x, and y if it is conditional; integer labels beside them are kept for
            pictures. Other programs get all columns, and tensors as they are.
        validation: Validation data, in any of these forms, where `data` are no `Dataset`; read once, into memory.
            None validates on nothing.
        objective: `objectives.ELBO` by default; or another of `ppl_vae.objectives`, a Pyro ELBO object, or a function
            of log-weights.
        regularizer: A penalty beside the objective, such as ``regularizers.KLWeight(4.0)``.
        optimizer: Makes a torch optimiser from the parameters; ``functools.partial(torch.optim.Adam, lr=1e-3)`` by
            default. A parameter that it leaves out keeps its value.
        scheduler: Makes a torch learning-rate scheduler from the optimiser; `fit` steps it once an epoch (a
            `ReduceLROnPlateau` sees minus the validation ELBO).
        epochs: Passes over the training data.
        batch_size: Data per step; the last batch of an epoch may be smaller. It is lowered to the number of data, with
            a warning, where it is above. Batches of a loader have their own size.
        clip_norm: Largest L2 norm of the gradient (of the mean per datum); None does not clip.
        validate_every: Epochs between validations; the last epoch is always validated.
        early_stopping: End after so many validations without a better validation ELBO, and take the best parameters;
            None never does.
        seed: Seed of the noise and of the order of the data; None draws one from torch's global generator.
        device: A torch device, or ``"auto"``. A `VAE` then trains on cuda, else mps, else the CPU, as available; on the
            CPU, with a warning, if a piece holds tensors that do not move with its modules. A pair of functions trains
            where the parameters of its modules are, or where the data are if it has none: nothing moves the constants
            of functions and the initial values of ``pyro.param``. Give ``"cuda"`` for functions that make them where
            the data are (``x.new_zeros``).
        compile: How a step runs, see `SVI`: ``"off"`` (eagerly, through Pyro), ``"graph"`` (captured, bit for bit the
            same on the CPU), ``"full"`` (compiled by Inductor: fastest, after 15 seconds to a minute of compiling, and
            equal up to rounding; a further shape of batch is compiled after 100 uses). ``"auto"`` compiles long runs,
            see `training.resolve_compile`.
        precision: ``"full"``, the dtype of the parameters, or ``"bf16"``: training steps take their products in
            bfloat16 (``torch.autocast``), whose numbers have 8 bits. Parameters, the networks' outputs, densities and
            validation stay float32. **The bound and the gradients of a step are then rounded by about 1 part in 300**;
            compare runs by `validation_elbo`. Slower than ``"full"`` on a CPU without such instructions.
        matmul_precision: How float32 products round in training steps, in torch's words: ``"highest"`` in float32,
            ``"high"`` in TF32 on a GPU that has it, ``"medium"`` also in bfloat16 on a CPU that has it. None leaves
            torch's setting, by which validation rounds too: ``"highest"`` unless you have changed it.
        callbacks: The observers of the run.
        stop: Called after every step, or on a GPU after the steps that it takes without Python, at most a hundred.
            True ends the run there, as an interrupted run.
        resume: The state of an earlier run (`checkpoints.load`). The run continues where it stood, bit by bit on the
            CPU, with its own seed and the numbers of its own optimiser and scheduler, and on the same data. A run that
            early stopping has ended is over, unless `early_stopping` is larger now: then it trains on from its last
            parameters. A loader can only be entered at its start: a run that stopped in the midst of an epoch takes
            this epoch from its beginning, with a warning. It then goes on bit by bit if the loader's order comes from
            torch's global generator (a `DataLoader` without a generator of its own). Nobody sees whether a loader or a
            torch `Dataset` still holds the same data.

    Returns:
        The `Run`, with the trained program and its history.

    Raises:
        TypeError: If the data are of no kind that `data.as_split` takes, or the objective or optimiser of no known
            kind.
        ValueError: If an argument is out of range, the program does not fit the data or the objective, or it holds
            tensors on another device that `fit` does not move.
        DivergedError: If a value or a gradient is not finite, or no model can give a figure: a sampled KL below 0, or
            log p(x|z) or a lower bound above 0 for discrete data, by more than chance allows.

    Example:
        >>> import ppl_vae as pv
        >>> digits = pv.data.load("digits")
        >>> vae = pv.VAE(digits, prior=pv.priors.StandardNormal(2), likelihood=pv.likelihoods.Bernoulli(),
        ...              posterior=pv.posteriors.DiagonalNormal())
        >>> run = fit(vae, digits, epochs=3, seed=0)
        >>> run.history[-1]["validation_elbo"] > run.history[0]["validation_elbo"]
        True
    """
    given = dict(locals())
    epochs = check_positive_int(epochs, "epochs")
    batch_size = check_positive_int(batch_size, "batch_size")
    validate_every = check_positive_int(validate_every, "validate_every")
    if early_stopping is not None:
        early_stopping = check_positive_int(early_stopping, "early_stopping")
    if clip_norm is not None:
        check_positive(clip_norm, "clip_norm")
    check_choice(compile, ("auto", *get_args(Compile)), "compile")
    check_choice(precision, get_args(Precision), "precision")
    if matmul_precision is not None:
        check_choice(matmul_precision, get_args(MatmulPrecision), "matmul_precision")
    if seed is not None:
        seed = check_seed(seed)
    device = resolve_device(device)
    model, guide = (program.model, program.guide) if isinstance(program, VAE) else program
    objective = objective or ELBO()
    if regularizer is not None:
        objective = Regularized(objective, regularizer)
    modules = modules_of(model, guide, objective)
    data = _dataset(data, validation, program, modules)
    if isinstance(data.train, Stream) and data.train.once and epochs > 1:
        raise ValueError(
            f"epochs is {epochs}, and the data are a generator, which can be read once: give epochs=1, or a "
            "DataLoader, a list of batches or any object whose __iter__ starts afresh"
        )
    asked = len(data.train.columns[0]) if isinstance(data.train, Stream) else batch_size
    batch_size = asked if isinstance(data.train, Stream) else min(asked, len(data.train))
    auto = given["device"] == "auto"
    if auto and not isinstance(program, VAE):
        offered, device = device, device_of((model, guide), data)
        if offered.type != device.type:
            where = "a pair of functions trains where its parameters are, on %s; device='%s' moves its modules"
            logger.info(where, device, offered)
    ranks = Ranks(Team.present())
    if ranks.team.size > 1:
        _check_shares(ranks, data, batch_size)
    for module in modules:
        module.to(device)
    like = home_of((model, guide))
    if precision == "bf16" and like is not None and like.dtype != torch.float32:
        raise ValueError(f"precision is 'bf16', which suits parameters in float32, and these are {like.dtype}")
    level = resolve_compile(compile, data, objective=objective, epochs=epochs, batch_size=batch_size, device=device)
    svi = SVI(
        model,
        guide,
        optimizer or functools.partial(torch.optim.Adam, lr=1e-3),
        objective,
        clip_norm=clip_norm,
        compile=level,
    )
    if resume is not None:
        own = resume.get("seed")
        if type(own) is not int or not 0 <= own < 2**63:
            raise ValueError(f"the checkpoint is of another run, or damaged: its seed is {own!r}")
        if seed not in (None, own):
            raise ValueError(f"seed is {seed}, and that of the run to resume {own}; leave it out")
        seed = own
    seed = ranks.agree(int(torch.randint(2**31, ()) if seed is None else seed))
    ranks.device = str(device)
    placed = _placed(data, device, None if like is None else like.dtype)
    run = Run(program, placed, seed, str(device), level, processes=ranks.team.size)
    rounding = functools.partial(rounded, device.type, precision, matmul_precision)
    in_steps = nullcontext if precision == "full" and matmul_precision is None else rounding
    loop = Loop(
        run,
        svi,
        modules,
        scheduler,
        epochs,
        batch_size,
        validate_every,
        early_stopping,
        callbacks,
        stop,
        in_steps,
        ranks,
    )
    with ALONE, untouched_random_state():
        torch.manual_seed(seed)
        store = pyro.get_param_store()
        known = set(store.keys())
        try:
            loop.rehearse()
        except StrangersError as error:
            if not auto or device.type == "cpu" or ranks.team.size > 1:
                raise
            logger.warning("training on the CPU: %s", error)
            for name in store.keys() - known:  # made on the GPU
                del store[name]
            same = {"data": data, "validation": None, "batch_size": asked, "seed": seed}
            del placed, run, loop, svi
            return fit(**given | same | {"device": "cpu"})
        if batch_size < asked:  # said where nothing is refused
            warnings.warn(f"batch_size is lowered from {asked} to the {batch_size} training data", stacklevel=2)
        if isinstance(program, VAE):
            program.column_names, program.categories = placed.train.column_names, placed.train.categories
            program.conditions = placed.train.conditions
        del given, data  # the data stay where they were placed, and nowhere else
        loop.prepare(resume)
        with pyro.validation_enabled(False):
            try:
                loop.run()
            except BaseException as error:
                loop.tell("on_error", run, error)
                raise
    return run


def _check_shares(ranks: Ranks, data: Dataset, batch_size: int) -> None:
    """Refuse data that the processes of a run cannot share."""
    if isinstance(data.train, Stream):
        next(data.train.batches(team=ranks.team))  # refuses it
    if batch_size < ranks.team.size:
        few = not isinstance(data.train, Stream) and len(data.train) == batch_size
        what = f"there are {batch_size} training data" if few else f"batch_size is {batch_size}"
        fix = "give more data, or train in one process" if few else "raise it"
        raise ValueError(f"{what}, and {ranks.team.size} processes share a batch: {fix}")
    if any(ranks.differ(zlib.crc32(data.fingerprint.encode()))):
        raise ValueError(
            f"the processes have different data (the fingerprint here is {data.fingerprint!r}): give every process all "
            "of the same data, which `fit` shares out itself"
        )


def _dataset(data: Any, validation: Any, program: VAE | Program, modules: Sequence[nn.Module]) -> Dataset:
    """Return the data and the validation data as a data set, in the form that the program takes."""
    if isinstance(data, Dataset):
        if validation is not None:
            raise ValueError(f"validation was given beside a Dataset, which has {len(data.validation)} validation rows")
        form = form_of(program, modules).like(data.train)
        held, test = (split_of(part, form) if len(part) else part for part in (data.validation, data.test))
        same = held is data.validation and test is data.test
        return data if same else replace(data, validation=held, test=test)
    form = form_of(program, modules)
    found = Dataset.of("data", split_of(data, form))
    if validation is None:
        return found
    return replace(found, validation=gathered(split_of(validation, form.like(found.train))))


def _placed(data: Dataset, device: torch.device, dtype: torch.dtype | None) -> Dataset:
    """Move a data set to a device; leave it on the CPU where it takes more than half of a GPU's free memory.

    What stays moves batch by batch.
    """
    if device.type == "cuda":
        columns = [column for split in (data.train, data.validation, data.test) for column in split.columns]
        size = sum(column.nbytes for column in columns if isinstance(column, Tensor))
        free, _ = torch.cuda.mem_get_info(device)
        if size > free / 2:
            logger.info(
                "the data take %.1f GB, and %s has %.1f GB free: they stay on the CPU, and batches move",
                size / 1e9,
                device,
                free / 1e9,
            )
            return data.to("cpu", dtype)
    return data.to(device, dtype)
