"""A sweep's plan: what a file asks for, run by run, and what it may not say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ppl_vae.configuration import config
from ppl_vae.sweeps import plan as plans

TRAINED = "{config: digits, epochs: 2}"


@pytest.fixture
def read(tmp_path):
    def made(text: str) -> plans.Plan:
        path = tmp_path / "plan.yaml"
        path.write_text(text)
        return plans.read(path)

    return made


def test_a_grid_times_seeds(read):
    found = read(f"base: {TRAINED}\nseeds: [4, 7]\ngrid: {{optimizer.lr: [1e-3, 3e-3], epochs: [1, 2]}}")
    assert found.varied == ("optimizer.lr", "epochs")
    assert [run.name for run in found.runs][:3] == [
        "lr=0.001,epochs=1,seed=4",
        "lr=0.001,epochs=1,seed=7",
        "lr=0.001,epochs=2,seed=4",
    ]
    assert len(found.runs) == 8 == len({run.digest for run in found.runs})
    last = found.runs[-1]
    assert last.config.values["optimizer"]["lr"] == 3e-3
    assert last.seed == 7
    assert last.label == "lr=0.003 epochs=2"


def test_a_run_is_what_train_would_make_of_the_same_options(read):
    found = read("base: article\nseeds: [2]\nlist: [{prior: {class: VampPrior, num_components: 9}, batch_size: 64}]")
    argv = ["--config=article", "--prior=VampPrior", "--prior.num_components=9", "--batch_size=64", "--seed=2"]
    assert found.runs[0].config.to_yaml() == config.parse(argv).to_yaml()
    assert found.runs[0].name == "seed=2"  # nothing varies
    assert found.runs[0].label == "base"


def test_a_class_of_a_class_is_taken_apart(read):
    found = read("grid: {likelihood: [{class: Normal, network: {class: MLP, hidden: [7]}}, Bernoulli]}\nseeds: 1")
    values = found.runs[0].config.values["likelihood"]
    assert values["class"] == "Normal"
    assert values["network"]["hidden"] == [7]
    assert found.runs[1].config.values["likelihood"]["class"] == "Bernoulli"


def test_a_class_that_a_setting_names_takes_nothing_of_the_base_but_its_networks(read):
    base = (
        "{objective: {class: IWAE, num_particles: 50}, optimizer.lr: 0.02, "
        "likelihood: {class: Normal, scale: 0.3, network: {class: MLP, hidden: [7]}}}"
    )
    other = "{objective: RenyiELBO, likelihood: Laplace, optimizer: SGD}"
    settings = f"[{other}, {{objective: {{class: IWAE, num_particles: 3}}}}, {{}}]"
    one, two, three = (run.config.values for run in read(f"base: {base}\nseeds: 1\nlist: {settings}").runs)
    assert one["objective"]["num_particles"] == 2
    assert [one["optimizer"][name] for name in ("class", "lr")] == ["SGD", 0.02]  # the base gives it to no class
    assert one["likelihood"]["scale"] == 1.0
    assert one["likelihood"]["network"]["hidden"] == [7]
    assert [two["objective"]["num_particles"], three["objective"]["num_particles"]] == [3, 50]
    assert two["likelihood"]["scale"] == three["likelihood"]["scale"] == 0.3


@pytest.mark.ci
def test_more_draws_of_a_seed_begin_with_the_same(read):
    text = """
    base: digits
    seeds: 1
    random:
      draws: %d
      seed: %d
      options: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}, batch_size: {low: 10, high: 12}, clip_norm: [1, 5]}
    """
    few, many, other = (read(text % numbers) for numbers in ((4, 1), (40, 1), (4, 2)))
    assert [run.digest for run in many.runs[:4]] == [run.digest for run in few.runs]
    assert [run.digest for run in other.runs] != [run.digest for run in few.runs]
    values = [run.config.values for run in many.runs]
    rates = sorted(v["optimizer"]["lr"] for v in values)
    assert 1e-4 <= rates[0] < 5e-4 < 2e-3 < rates[-1] <= 1e-2
    assert {v["batch_size"] for v in values} == {10, 11, 12}
    assert {v["clip_norm"] for v in values} == {1, 5}


def test_the_shares_of_a_range_are_even():
    log = [plans._drawn({"low": 1e-4, "high": 1e-2, "log": True}, "x", share) for share in (0.0, 0.5, 0.999999)]
    assert log == pytest.approx([1e-4, 1e-3, 1e-2], rel=1e-3)
    whole = [plans._drawn({"low": 1, "high": 4}, "x", i / 400) for i in range(400)]
    assert [whole.count(n) for n in (1, 2, 3, 4)] == [100] * 4
    assert plans._drawn({"low": 0.5, "high": 1.5}, "x", 0.25) == 0.75


def test_settings_that_are_the_same_run_once_and_are_counted(read):
    found = read("base: {epochs: 3}\nseeds: 2\nlist: [{epochs: 3}, {}, {epochs: 4}]")
    assert len(found.runs) == 4
    assert found.repeated == 1


def test_names_are_short_safe_and_different(read):
    long = ", ".join(f'"[{", ".join(["100"] * n)}]"' for n in (30, 31))
    found = read(f"seeds: 1\ngrid: {{likelihood.network.hidden: [{long}], data.root: [a/b, 'a b']}}")
    names = [run.name for run in found.runs]
    assert len(set(names)) == 4
    assert all(len(name) < 150 and not set(name) & set("/ []\\\"'") for name in names)
    assert names[0].startswith("hidden=100-100-100")
    labels = [run.label for run in read('seeds: 1\ngrid: {data.root: ["a\\nb", a b, ü]}').runs]
    assert labels == ['root="a\\nb"', "root=a b", "root=ü"]  # each on one line


def test_a_name_is_short_only_where_no_other_setting_means_another_option_by_it(read):
    entries = "[{posterior.network.hidden: [32]}, {likelihood.network.hidden: [32], prior.num_components: 9}]"
    labels = [run.label for run in read(f"base: {{prior: VampPrior}}\nseeds: 1\nlist: {entries}").runs]
    assert labels == ["posterior.network.hidden=[32]", "likelihood.network.hidden=[32] num_components=9"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 3", "'epochs' is unknown; expected base, seeds, grid, list, random"),
        ("gird: {epochs: [1]}", "(did you mean grid?)"),
        ("grid: {epochs: [1]}\nlist: [{}]", "has grid and list; expected one of"),
        ("grid: {epochs: 3}", "expected options, each with a list of values"),
        ("grid: {epochs: []}", "expected options, each with a list of values"),
        ("grid: {}", "expected options, each with a list of values"),
        ("list: {epochs: 3}", "expected a list of options"),
        ("list: [3]", "expected options of ppl-vae train"),
        ("list: [{--epochs: 3}]", "'--epochs'; expected an option of ppl-vae train"),
        ("random: {draws: 3}", "expected draws, seed (0 by default) and options"),
        ("random: {draws: 0, options: {epochs: [1]}}", "draws is 0; expected a positive integer"),
        ("random: {draws: 3, options: {}}", "options is {}"),
        ("random: {draws: 3, seed: -1, options: {epochs: [1]}}", "seed is -1"),
        ("random: {draws: 3, options: {epochs: 3}}", "epochs is 3; expected a list, or low, high"),
        ("random: {draws: 3, options: {epochs: {low: 3, high: 2}}}", "expected low below high"),
        ("random: {draws: 3, options: {optimizer.lr: {low: 0, high: 2, log: true}}}", "both above 0 with log"),
        ("random: {draws: 3, options: {optimizer.lr: {low: .nan, high: 2}}}", "expected low below high"),
        ("seeds: 0", "seeds is 0; expected how many"),
        ("seeds: [1, 1]", "seeds is [1, 1]"),
        ("seeds: [[1], [2]]", "seeds is [[1], [2]]; expected how many"),
        ("seeds: 100000000000", "and at most 10,000"),
        ("base: {seed: 3}", "sets seed, which the sweep chooses for each run; give seeds"),
        ("grid: {seed: [1, 2]}", "give seeds"),
        ("base: {out: x}", "sets out"),
        ("grid: {resume: [runs/a]}", "sets resume"),
        ("base: 3", "base is 3; expected options"),
        ("base: artcle", "--config is 'artcle'"),
        ("grid: {prior: [StandardNormal, VampPriorr]}", "prior=VampPriorr: --prior is 'VampPriorr'"),
        ("grid: {prior: [StandardNormal, VampPrior], prior.num_components: [5]}", "prior=StandardNormal: --prior"),
        ("grid: {optimizer.lr: [1e-3, fast]}", "lr=fast: --optimizer.lr"),
        ("grid: {prior: [os.system]}", "os.system"),
        (f"seeds: 100\ngrid: {{epochs: {[*range(1, 200)]}}}", "19,900 runs; expected 10,000"),
        ("[1]", "holds list"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_what_a_plan_may_not_say(read, text, said):
    with pytest.raises(ValueError) as raised:
        read(text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.ci
def test_the_plans_of_the_page_are_plans(read):
    page = (Path(__file__).resolve().parents[2] / "docs" / "many-runs.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert [len(read(block).runs) for block in blocks] == [18, 6, 60]
