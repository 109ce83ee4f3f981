"""A comparison as sentences, which claim only what the intervals support."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from scipy import stats
from torch import Tensor

from ppl_vae.comparison.fixed.results import Block, KnownEvidence, Results, Row
from ppl_vae.comparison.fixed.slopes import slopes_of
from ppl_vae.comparison.statistics.measured import Measured, measured, negated, t_quantile
from ppl_vae.comparison.words import listed

_LEVEL = 0.01  # of all tests of bias together, and of all tests for values above log p(x) together
_NOTICED = 0.1  # a ratio nearer to one than this gets no sentence


def sentences_of(comparison: Results) -> list[str]:
    """Return the sentences: values, biases, signal-to-noise, its slopes, costs, what failed.

    Ratios compare bootstrap resamples of the same replicates; a ratio gets a sentence if its 95% interval excludes one.
    A bias gets a sentence if its p-value, times the number of tests, is below 0.01. A bias that is unclear gets a
    sentence with the reason. If the batch is the first few data of a split, the sentences say so.
    """
    good = [row for row in comparison.rows if row.failed is None]
    found = [
        *_nearest_bound(comparison, good),
        *_not_below(comparison, good),
        *_biases(good),
        *unclear_biases(good),
        *_signals(good, comparison.replicates),
        *_slopes(comparison),
        *_cheapest(good, comparison.replicates),
        *_data_noise(good),
    ]
    if comparison.where:
        found = [_put_before_stop(sentence, f", {comparison.where}") for sentence in found]
    return [*found, *without_figures(comparison)]


def _put_before_stop(sentence: str, words: str) -> str:
    """Add words at the end of the first sentence, before a second one in brackets."""
    first, bracket, rest = sentence.partition(". (")
    return f"{first}{words}{bracket}{rest}" if bracket else f"{sentence.removesuffix('.')}{words}."


def _nearest_bound(comparison: Results, rows: Sequence[Row]) -> Iterator[str]:
    known = comparison.evidence
    bounds = sorted((r for r in rows if r.kind == "lower"), key=lambda r: -r.value)
    if known is None or not bounds:
        return
    best, t = bounds[0], t_quantile(comparison.replicates)
    level = [r for r in bounds[1:] if best.value - r.value <= t * math.hypot(best.value_se, r.value_se)]
    others = [r for r in bounds[1:] if r not in level]
    where = _log_p(known)
    assert best.bias is not None
    gap = f"{negated(best.bias)} nats below {where}"
    if level:
        same = _some([_at(row) for row in level])
        yield f"The lower bounds nearest to log p(x) are {_at(best)}, {gap}, and within its noise {same}."
    elif others:
        yield f"The lower bound nearest to log p(x) is {_at(best)}, {gap}; next is {_at(others[0])}."
    for row in rows:
        if row.kind == "upper" and row.bias is not None:
            side = "above" if row.bias.low > 0 else "below" if row.bias.high < 0 else None
            if side == "below":
                yield (
                    f"{_at(row)}, an estimate of an upper bound, lies {negated(row.bias)} nats below {where}: "
                    "its own estimate is too low at this K."
                )
            elif side == "above":
                yield f"{_at(row)} lies {row.bias} nats above {where}, as an upper bound does."


def _not_below(comparison: Results, rows: Sequence[Row]) -> Iterator[str]:
    r"""Report values above log p(x), beyond their noise, of estimators that are no declared upper bound.

    A value must exceed log p(x) both by Student's t and by Markov's inequality, at 1% for all rows together. A lower
    bound is at most the mean of log w over n = R B weights w of mean p(x). By Markov's inequality, whatever the tail of
    w, this mean is more than t above log p(x) with a probability of at most :math:`e^{-n t}`.
    """
    known, tested = comparison.evidence, [row for row in rows if row.kind != "upper"]
    if known is None or not math.isfinite(known.error):
        return
    for row in tested:
        level = _LEVEL / len(tested)
        markov = -math.log(level) / (comparison.replicates * comparison.data_shape[0])
        t = float(stats.t.isf(level, comparison.replicates - 1))
        if known.exact:
            noise = max(t * row.value_se, markov) + known.error
        else:
            noise = max(t * math.hypot(row.value_se, known.error), markov)
        excess = row.value - known.value
        if excess > max(noise, 1e-6 * abs(known.value)):  # the second term is rounding
            doubt = "" if known.exact else ", or that estimate is too low"
            shown = f"{row.bias}" if row.bias is not None else f"{excess:.3g}"
            yield f"{_at(row)} lies {shown} nats above {_log_p(known)}, so it is no lower bound{doubt}."


def _log_p(known: KnownEvidence) -> str:
    return f"log p(x) = {known.value:.6g}" + ("" if known.exact else " (an estimate)")


def _biases(rows: Sequence[Row]) -> Iterator[str]:
    """Report, for each estimator and block, the largest K with a bias; then the estimators without any."""
    tested = [(r, n, b, b.bias, b.bias_p) for r in rows for n, b in r.blocks.items() if b.bias is not None]
    largest: dict[tuple[str, str], tuple[Row, Block, Measured, float]] = {}
    clean: dict[tuple[str, str], list[int]] = {}
    unclear = {(r.name, r.num_particles) for r, _, b, _, _ in tested if b.bias_unclear}
    for row, name, block, bias, p in tested:
        corrected = min(1.0, len(tested) * (1.0 if p is None else p))
        if corrected < _LEVEL:
            known = largest.get((row.name, name))
            if known is None or row.num_particles > known[0].num_particles:
                largest[row.name, name] = (row, block, bias, corrected)
        elif not block.is_reference and (row.name, row.num_particles) not in unclear:
            several = clean.setdefault((row.name, str(row.reference)), [])
            several += [row.num_particles] if row.num_particles not in several else []
    for (name, block_name), (row, block, bias, corrected) in largest.items():
        share = f", {bias.value / block.norm.value:.1%} of the gradient's own" if block.norm.low > 0 else ""
        size = f"{bias}{share}" if bias.low > 0 else f"at most {bias.high:.2g}"  # only the test detects it
        p_value = "p < 1e-6" if corrected < 1e-6 else f"p = {corrected:.1g}"
        yield (
            f"{name}'s {block_name} gradient is biased against {row.reference}'s at K = {row.num_particles}: by a norm "
            f"of {size} ({p_value} over {len(tested)} tests)."
        )
    biased, in_part = {name for name, _ in largest}, {name for name, _ in unclear}
    for reference in dict.fromkeys(reference for _, reference in clean):
        names = [
            f"{name} at K = {listed(list(map(str, several)))}" if name in in_part else name
            for (name, other), several in clean.items()
            if other == reference and name not in biased
        ]
        if names:
            yield f"No bias against {reference}'s gradient was found in {listed(names)}."


def unclear_biases(rows: Sequence[Row]) -> Iterator[str]:
    """Report the estimators whose bias is unclear, each reason once with all its K."""
    unclear: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for why in dict.fromkeys(block.bias_unclear for block in row.blocks.values() if block.bias_unclear):
            unclear.setdefault((row.name, why), []).append(str(row.num_particles))
    for (name, why), several in unclear.items():
        yield f"No claim of bias for {name} at K = {listed(several)}: {why}."


def _signals(rows: Sequence[Row], replicates: int) -> Iterator[str]:
    """Compare the signal-to-noise of each estimator with its reference's, at the largest K that both have."""
    largest: dict[tuple[str, str], tuple[Row, Row]] = {}
    for row in rows:
        for other in rows:
            if other.name == row.reference and other.num_particles == row.num_particles:
                key = (row.name, other.name)
                if key not in largest or row.num_particles > largest[key][0].num_particles:
                    largest[key] = (row, other)
    for row, other in largest.values():
        for name, block in row.blocks.items():
            against = other.blocks.get(name)
            if against is None or not _well_above_floor(block) or not _well_above_floor(against):
                continue
            ratio = _ratio(block.resampled.get("snr"), against.resampled.get("snr"), replicates)
            if ratio is None or (1 - _NOTICED < ratio.value < 1 + _NOTICED) or ratio.low <= 1 <= ratio.high:
                continue
            yield (
                f"{row.name}'s {name} gradient has {ratio} times the signal-to-noise of {other.name}'s at K = "
                f"{row.num_particles} (medians over parameters)."
            )


def _well_above_floor(block: Block) -> bool:
    return math.isfinite(block.snr.value) and block.above_floor


def _slopes(comparison: Results) -> Iterator[str]:
    slopes = slopes_of(comparison.rows)
    for block in dict.fromkeys(slope.block for slope in slopes):
        clear = [s for s in slopes if s.block == block and not s.low <= 0 <= s.high]
        if clear:
            told = [f"{s.name} K^{s.value:.2f} [{s.low:.2f}, {s.high:.2f}]" for s in clear]
            yield f"With K the signal-to-noise of the {block} gradient goes about as: {', '.join(told)}."


def _cheapest(rows: Sequence[Row], replicates: int) -> Iterator[str]:
    for name in dict.fromkeys(n for r in rows for n in r.blocks):
        costs = []
        for row in rows:
            block = row.blocks.get(name)
            if block is None or block.seconds_to_tenth is None or not math.isfinite(block.seconds_to_tenth.value):
                continue
            if block.norm.low > 0:
                costs.append((block.seconds_to_tenth.value, row, block))
        if len(costs) < 2:
            continue
        costs.sort(key=lambda cost: cost[0])
        (_, best, block), level = costs[0], []
        for _, row, other in costs[1:]:
            ratio = _ratio(other.resampled.get("seconds_to_tenth"), block.resampled.get("seconds_to_tenth"), replicates)
            if ratio is None or ratio.low <= 1:
                level.append(row)
        assert block.seconds_to_tenth is not None
        cost = f"{block.seconds_to_tenth} s"
        tie = f"; within the noise of that: {_some([_at(r) for r in level])}" if level else ""
        yield (
            f"A relative standard error of 10% of the {name} gradient costs least by {_at(best)}, {cost} of steps"
            f"{tie}. (Each estimates the gradient of its own objective.)"
        )


def _data_noise(rows: Sequence[Row]) -> Iterator[str]:
    """Report where the choice of data outweighs the estimator's noise: there more particles would help little."""
    for name in dict.fromkeys(n for r in rows for n in r.blocks):
        with_block = [(row, row.blocks[name]) for row in rows if name in row.blocks]
        below = [r for r, b in with_block if (m := b.minibatch_variance) is not None and m.low > b.variance.high > 0]
        if below:
            shown = _some([_at(row) for row in below])
            yield f"The choice of data adds more noise to the {name} gradient than the estimator itself in {shown}."


def without_figures(comparison: Results) -> Iterator[str]:
    """Report the estimators that failed or are not defined, each reason once with all its K."""
    missing: dict[tuple[str, str, str], list[str]] = {}
    for row in comparison.rows:
        if row.failed:
            missing.setdefault((row.name, "failed", row.failed), []).append(str(row.num_particles))
    for name, k, reason in comparison.undefined:
        missing.setdefault((name, "is not defined", reason), []).append(str(k))
    for (name, what, reason), several in missing.items():
        yield f"{name} {what} at K = {listed(several)}: {reason.rstrip('.')}."


def _ratio(first: Tensor | None, second: Tensor | None, num_units: int) -> Measured | None:
    if first is None or second is None:
        return None
    ratio = first / second
    if not bool(ratio[0].isfinite()):
        return None
    return measured(torch.nan_to_num(ratio, nan=math.inf), num_units)


def _at(row: Row) -> str:
    return f"{row.name} at K = {row.num_particles}"


def _some(names: Sequence[str]) -> str:
    """List at most three names, and the number of the others."""
    return listed(names) if len(names) <= 3 else f"{', '.join(names[:3])} and {len(names) - 3} more"
