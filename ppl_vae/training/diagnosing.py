"""The search for the step that made a run diverge."""

from __future__ import annotations

from typing import Any

from ppl_vae.data import Split
from ppl_vae.training.ranks import Ranks
from ppl_vae.training.state import DivergedError, TrainingState


def diagnose(
    state: TrainingState, good: dict[str, Any], train: Split | None, device: str, ranks: Ranks
) -> DivergedError:
    """Find the first step that went bad, by repeating the steps since the last good state one by one.

    A loader's batches, for which `train` is None, cannot be read again: the error is that which the run itself saw.

    Return the error to raise, with the program back in the good state.
    """
    epoch, batch_size = good["epoch"] + 1, state.batch_size
    bad_steps = (~state._columns()[: state.step].isfinite()).any(1).nonzero().flatten().tolist()
    bad = bad_steps[0] if bad_steps else state.step - 1
    error = DivergedError(epoch, bad + 1, state.bad_term(bad), good)
    state.restore(good)
    if train is None:
        return error
    order = state.order(len(train))[good["step"] * batch_size :]
    ranks.begin_step(state.seed, state.epoch, state.step)
    for batch in train.batches(batch_size, order=order, device=device, team=ranks.team):
        size = min(batch_size, len(train) - state.step * batch_size)
        state.note(state.svi.backward(*batch, mean=True, **ranks.arguments(size)))
        finite = state._columns()[state.step - 1].isfinite().all()
        term = None if finite else state.bad_term(state.step - 1)
        for name, parameter in state.svi.parameters.items():
            if term is None and parameter.grad is not None and not parameter.grad.isfinite().all():
                term = f"the gradient of {name.split('$$$')[-1]} is not finite while the loss is"
        if term is None:
            state.svi.apply()
            term = None if state.parameters_are_finite() else "the optimiser's step made parameters that are not finite"
        if term is not None:
            error = DivergedError(epoch, state.step, term, good)
        if term is not None or state.step > bad:
            break  # no bad term up to `bad` (a device whose sums vary): the error that the run itself saw stands
        ranks.begin_step(state.seed, state.epoch, state.step)
    state.restore(good)
    return error
