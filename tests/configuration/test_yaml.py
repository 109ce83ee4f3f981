"""The YAML of configurations: numbers of YAML 1.2, and limits that no file gets around."""

from __future__ import annotations

import time

import pytest
import yaml

from ppl_vae.configuration import _yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)


def test_numbers_and_words_are_those_of_yaml_1_2():
    text = "{a: 010, b: 1e-3, c: 0x1F, d: 0o17, e: off, f: yes, g: true, h: 2020-01-01, i: '1:30', j: 1_000, k: -.5}"
    values = {"a": 10, "b": 1e-3, "c": 31, "d": 15, "e": "off", "f": "yes", "g": True, "h": "2020-01-01"}
    assert _yaml.load(text, "it") == values | {"i": "1:30", "j": "1_000", "k": -0.5}


@pytest.mark.parametrize(
    "value", ["010", "1e-3", "true", "off", "0o7", "0x1", "1_0", "2020-01-01", "~", "null", "", 10]
)
def test_what_is_dumped_is_read_back_by_this_reader_and_by_others(value):
    text = yaml.dump({"a": value, "b": [value]}, Dumper=_yaml.Dumper)
    assert _yaml.load(text, "it") == yaml.safe_load(text) == {"a": value, "b": [value]}


def test_anchors_and_merges_work():
    assert _yaml.load("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}", "it")["c"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "more than 10000 values"),
        ("a: &a [*a]", "refers to itself"),
        ("a: " + "[" * 100_000, "more than 30 levels"),
        ("a: 1\nb: 2\na: 3", "the key 'a' stands twice"),
        ("a: {b: 1, b: 2}", "the key 'b' stands twice"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("- 1", "it holds list"),
        ("", "it holds NoneType"),
    ],
    ids=lambda text: text[:12],
)
def test_a_file_beyond_the_limits_is_refused_at_once(text, message):
    began = time.process_time()
    with pytest.raises(ValueError, match=message):
        _yaml.load(text, "it")
    assert time.process_time() - began < 5
