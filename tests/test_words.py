"""Words in sentences of ours: what errors say."""

from __future__ import annotations

from ppl_vae._words import first_line, one_line, said_by
from ppl_vae.evaluation.parts import Account


def test_a_message_is_put_on_one_line():
    error = RuntimeError("  mat1 and mat2\n  differ\n")
    assert one_line(error) == said_by(error) == "mat1 and mat2 differ"
    assert first_line(error) == "mat1 and mat2"


def test_an_error_without_a_message_is_named_by_its_class():
    """Torch's distributions raise a bare NotImplementedError for what they lack."""
    assert first_line(NotImplementedError()) == said_by(NotImplementedError()) == "NotImplementedError"

    def lacks(seed: int) -> None:
        raise NotImplementedError

    account = Account(seed=0)
    assert account.tried("the gap was not taken apart", lacks) is None
    assert account.notes == ["the gap was not taken apart: NotImplementedError"]
