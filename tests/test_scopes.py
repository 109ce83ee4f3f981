"""What is set inside a block and restored after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ppl_vae._scopes import seeded
from ppl_vae.cli import main


def test_a_seed_gives_its_draws_and_leaves_the_generator() -> None:
    before = torch.get_rng_state()
    drawn = []
    for seed in (7, np.int32(7), 2**63 - 1):
        with seeded(seed):
            drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [1.5, -1, "3", True, None, 2**63, 10**400])
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    """Torch takes the integer part of a number, and counts on from below zero."""
    with pytest.raises(ValueError, match=r"expected an integer from 0 to 2\*\*63 - 1"), seeded(seed):
        pass


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_seed_beyond_torchs_integers_is_refused_in_our_words(command: str, capsys: pytest.CaptureFixture) -> None:
    assert main([command, "--seed", str(10**21)]) == 2
    assert "expected an integer from 0 to 2**63 - 1" in capsys.readouterr().err
