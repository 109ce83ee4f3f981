"""A comparison as sentences, which claim only what the intervals support."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from scipy import stats

from ppl_vae._measured import Measured, t_quantile
from ppl_vae._words import listed
from ppl_vae.comparison.fixed.results import LEVEL, Block, KnownEvidence, Results, Row, by_block
from ppl_vae.comparison.fixed.slopes import slopes_of
from ppl_vae.comparison.statistics.measured import measured, negated
from ppl_vae.comparison.words import at_k

_NOTICED = 0.1  # a ratio nearer to one than this gets no sentence
_MOST = 3  # the names that a list shows, before it counts the others


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
    (best, *others), t = bounds, t_quantile(comparison.replicates)
    level = [at_k(r) for r in others if best.value - r.value <= t * math.hypot(best.value_se, r.value_se)]
    where = _log_p(known)
    assert best.bias is not None
    gap = f"{at_k(best)}, {negated(best.bias)} nats below {where}"
    if level:
        yield f"The lower bounds nearest to log p(x) are {gap}, and within its noise {listed(level, _MOST)}."
    elif others:
        yield f"The lower bound nearest to log p(x) is {gap}; next is {at_k(others[0])}."
    for row in rows:
        if row.kind != "upper" or row.bias is None:
            continue
        if row.bias.low > 0:
            yield f"{at_k(row)} lies {row.bias} nats above {where}, as an upper bound does."
        elif row.bias.high < 0:
            yield (
                f"{at_k(row)}, an estimate of an upper bound, lies {negated(row.bias)} nats below {where}: "
                "its own estimate is too low at this K."
            )


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
        level = LEVEL / len(tested)
        markov = -math.log(level) / (comparison.replicates * comparison.data_shape[0])
        t = float(stats.t.isf(level, comparison.replicates - 1))
        if known.exact:
            noise = max(t * row.value_se, markov) + known.error
        else:
            noise = max(t * math.hypot(row.value_se, known.error), markov)
        excess = row.value - known.value
        if excess > max(noise, 1e-6 * abs(known.value)):  # the second term is rounding
            doubt = "" if known.exact else ", or that estimate is too low"
            yield f"{at_k(row)} lies {row.bias} nats above {_log_p(known)}, so it is no lower bound{doubt}."


def _log_p(known: KnownEvidence) -> str:
    return f"log p(x) = {known.value:.6g}" + ("" if known.exact else " (an estimate)")


def _biases(rows: Sequence[Row]) -> Iterator[str]:
    """Report, for each estimator and block, the largest K with a bias; then the estimators without any."""
    tested = [(r, n, b, b.bias, b.bias_p) for r in rows for n, b in r.blocks.items() if b.bias is not None]
    largest: dict[tuple[str, str], tuple[Row, Block, Measured, float]] = {}  # rows are ordered by K
    clean: list[tuple[str, str, int]] = []
    unclear = {(r.name, r.num_particles) for r, _, b, _, _ in tested if b.bias_unclear}
    for row, name, block, bias, p in tested:
        corrected = min(1.0, len(tested) * (1.0 if p is None else p))
        if corrected < LEVEL:
            largest[row.name, name] = (row, block, bias, corrected)
        elif not block.is_reference and (row.name, row.num_particles) not in unclear:
            clean.append((row.name, str(row.reference), row.num_particles))
    for (name, block_name), (row, block, bias, corrected) in largest.items():
        share = f", {bias.value / block.norm.value:.1%} of the gradient's own" if block.norm.low > 0 else ""
        size = f"{bias}{share}" if bias.low > 0 else f"at most {bias.high:.2g}"  # only the test detects it
        p_value = "p < 1e-6" if corrected < 1e-6 else f"p = {corrected:.1g}"
        yield (
            f"{name}'s {block_name} gradient is biased against {row.reference}'s at K = {row.num_particles}: by a norm "
            f"of {size} ({p_value} over {len(tested)} tests)."
        )
    biased, in_part = {name for name, _ in largest}, {name for name, _ in unclear}
    unbiased: dict[str, list[str]] = {}
    for name, reference, several in _together(clean):
        if name not in biased:
            unbiased.setdefault(reference, []).append(f"{name} at K = {several}" if name in in_part else name)
    for reference, names in unbiased.items():
        yield f"No bias against {reference}'s gradient was found in {listed(names)}."


def unclear_biases(rows: Sequence[Row]) -> Iterator[str]:
    """Report the estimators whose bias is unclear, each reason once with all its K."""
    unclear = [(r.name, b.bias_unclear, r.num_particles) for r in rows for b in r.blocks.values() if b.bias_unclear]
    for name, why, several in _together(unclear):
        yield f"No claim of bias for {name} at K = {several}: {why}."


def _signals(rows: Sequence[Row], replicates: int) -> Iterator[str]:
    """Compare the signal-to-noise of each estimator with its reference's, at the largest K that both have."""
    by_key = {(row.name, row.num_particles): row for row in rows}
    largest: dict[tuple[str, str], tuple[Row, Row]] = {}  # rows are ordered by K
    for row in rows:
        if row.reference is not None and (other := by_key.get((row.reference, row.num_particles))) is not None:
            largest[row.name, other.name] = (row, other)
    for row, other in largest.values():
        for name, block in row.blocks.items():
            against = other.blocks[name]
            if not all(b.above_floor and math.isfinite(b.snr.value) for b in (block, against)):
                continue
            ratio = _ratio(block, against, "snr", replicates)
            if ratio is None or (1 - _NOTICED < ratio.value < 1 + _NOTICED) or ratio.low <= 1 <= ratio.high:
                continue
            yield (
                f"{row.name}'s {name} gradient has {ratio} times the signal-to-noise of {other.name}'s at K = "
                f"{row.num_particles} (medians over parameters)."
            )


def _slopes(comparison: Results) -> Iterator[str]:
    slopes = slopes_of(comparison.rows)
    for block in dict.fromkeys(slope.block for slope in slopes):
        clear = [s for s in slopes if s.block == block and not s.low <= 0 <= s.high]
        if clear:
            told = [f"{s.name} K^{s.value:.2f} [{s.low:.2f}, {s.high:.2f}]" for s in clear]
            yield f"With K the signal-to-noise of the {block} gradient goes about as: {', '.join(told)}."


def _cheapest(rows: Sequence[Row], replicates: int) -> Iterator[str]:
    for name, found in by_block(rows).items():
        costs = [(b.seconds_to_tenth, r, b) for r, b in found if b.seconds_to_tenth is not None and b.norm.low > 0]
        costs = sorted((c for c in costs if math.isfinite(c[0].value)), key=lambda c: c[0].value)
        if len(costs) < 2:
            continue
        (cost, best, block), *others = costs
        ratios = [(row, _ratio(other, block, "seconds_to_tenth", replicates)) for _, row, other in others]
        level = [at_k(row) for row, ratio in ratios if ratio is None or ratio.low <= 1]
        tie = f"; within the noise of that: {listed(level, _MOST)}" if level else ""
        yield (
            f"A relative standard error of 10% of the {name} gradient costs least by {at_k(best)}, {cost} s of steps"
            f"{tie}. (Each estimates the gradient of its own objective.)"
        )


def _data_noise(rows: Sequence[Row]) -> Iterator[str]:
    """Report where the choice of data outweighs the estimator's noise: there more particles would help little."""
    for name, found in by_block(rows).items():
        noise = [(row, block.minibatch_variance, block.variance) for row, block in found]
        below = [at_k(row) for row, data, own in noise if data is not None and data.low > own.high > 0]
        if below:
            shown = listed(below, _MOST)
            yield f"The choice of data adds more noise to the {name} gradient than the estimator itself in {shown}."


def without_figures(comparison: Results) -> Iterator[str]:
    """Report the estimators that failed or are not defined, each reason once with all its K."""
    failed = [(f"{row.name} failed", row.failed, row.num_particles) for row in comparison.rows if row.failed]
    undefined = [(f"{u.name} is not defined", u.reason, u.num_particles) for u in comparison.undefined]
    for what, reason, several in _together([*failed, *undefined]):
        yield f"{what} at K = {several}: {reason.rstrip('.')}."


def _together(found: Iterable[tuple[str, str, int]]) -> Iterator[tuple[str, str, str]]:
    """Yield each pair of words once, with all its K in words."""
    several: dict[tuple[str, str], list[str]] = {}
    for first, second, k in found:
        several.setdefault((first, second), []).append(str(k))
    for (first, second), particles in several.items():
        yield first, second, listed(particles)


def _ratio(first: Block, second: Block, name: str, num_units: int) -> Measured | None:
    """Return the ratio of a figure of two blocks, from paired resamples; None without any, or where it is infinite."""
    if name not in first.resampled or name not in second.resampled:
        return None
    ratio = first.resampled[name] / second.resampled[name]
    if not bool(ratio[0].isfinite()):
        return None
    return measured(ratio, num_units, (0.0, math.inf))
