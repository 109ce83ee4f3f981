"""Sequences of different lengths: padding changes no number, and few graphs are made."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from gallery_programs import drawn, program, small
from torch.nn.functional import softplus

from ppl_vae import SVI


@pytest.fixture
def padded():
    """A small deep Markov model with sequences of 1 to 7 notes, padded to 8."""
    model, guide, loss, _ = small("deep_markov_model")
    module = program("deep_markov_model")
    sequences = [torch.bernoulli(torch.full((length, 5), 0.4)) for length in (3, 7, 1, 5)]
    return model, guide, loss, sequences, *module.pad(sequences)


def normal(value, loc, scale):
    return (-0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


@pytest.mark.parametrize("annealing", [1.0, 0.3])
def test_the_loss_is_that_of_each_sequence_by_itself(padded, annealing):
    """Each sequence alone, unpadded, its notes turned about for the network, terms by their formulas, at the same z."""
    model, guide, loss, sequences, x, lengths = padded
    assert x.shape == (4, 8, 5)
    z, found = drawn(model, guide, loss, (x, lengths, annealing))
    dmm, total = model.__self__, 0.0
    for n, sequence in enumerate(sequences):
        future = dmm.backward_rnn(sequence.flip(0))[0].flip(0)
        above, above_q = dmm.z_0, dmm.z_q_0
        for t, notes in enumerate(sequence):
            z_t = z[f"z_{t}"][n]
            loc, raw = dmm.of_both((dmm.of_latent(above_q).tanh() + future[t]) / 2).chunk(2, -1)
            total = total - annealing * normal(z_t, loc, softplus(raw) + 1e-4)
            gate, proposed = dmm.gate(above), dmm.proposed(above)
            loc = (1 - gate) * dmm.linear(above) + gate * proposed
            total = total + annealing * normal(z_t, loc, softplus(dmm.scale(proposed.relu())) + 1e-4)
            logits = dmm.emission(z_t)
            total = total + (notes * logits - softplus(logits)).sum()
            above = above_q = z_t
    torch.testing.assert_close(found, -total, rtol=1e-10, atol=0.0)


def test_more_padding_or_another_changes_neither_loss_nor_gradient(padded):
    model, guide, loss, _, x, lengths = padded
    longer = torch.cat([x, torch.zeros(4, 4, 5)], 1)
    other = torch.where(torch.arange(8)[:, None] < lengths[:, None, None], x, 1 - x)
    found = []
    for notes in (x, longer, other):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)  # z_0 to z_7 are drawn first, whatever follows
        value = loss.differentiable_loss(model, guide, notes, lengths, 1.0)
        gradient = torch.autograd.grad(value, list(model.__self__.parameters()))
        found.append((value, *gradient))
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], rtol=1e-10, atol=1e-12)


@pytest.mark.slow  # test_gallery.py captures this program; test_capture_changes.py bounds graphs over shapes
@pytest.mark.parametrize("longest", [12, 32])
def test_every_length_trains_in_few_graphs(longest):
    """In batches rounded up to a multiple of four: eight shapes for lengths up to 32, and as many graphs."""
    module = program("deep_markov_model")
    model, guide, loss, _ = module.make(0, "small")
    lengths = [length for length in range(1, longest + 1) for _ in range(2)]
    sequences = [torch.bernoulli(torch.full((length, 5), 0.4)) for length in lengths]
    batches = [module.pad(sequences[i : i + 4]) for i in range(0, len(sequences), 4)]
    svi = SVI(model, guide, module.optimiser(), loss)
    for i in range(4 * len(batches)):
        svi.step(*batches[i % len(batches)], min(1.0, 0.2 + i / 20))
        if i >= 3 * len(batches):
            assert svi.why_eager is None
    assert repr(svi) == f"SVI(captured in {longest // 4} graphs)"
