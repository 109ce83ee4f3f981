"""Configurations: what overrides what, round trips, foreign pieces, and one sentence for what does not fit."""

from __future__ import annotations

import inspect
import math
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml

from ppl_vae import data, likelihoods, networks, objectives
from ppl_vae.configuration.config import Config, parse, presets
from ppl_vae.configuration.pieces import KINDS, _is_piece, arguments_of

FOREIGN = """
    import math

    import pyro.distributions as dist
    import torch
    from torch import nn

    from ppl_vae.likelihoods import Bernoulli


    class Laplace(nn.Module):
        def __init__(self, network, width, scale=0.5, label="plain"):  # nothing annotated, nothing inherited from us
            super().__init__()
            self.factory, self.width, self.scale, self.label = network, width, scale, label

        def bind(self, binding):
            self.net = self.factory(binding.latent_shape, binding.x_shape)

        def forward(self, z):
            mean = self.net(z.reshape(-1, z.shape[-1]))
            mean = mean.reshape(*z.shape[:-1], *mean.shape[1:])
            return dist.Laplace(mean, self.scale).to_event(mean.dim() - z.dim() + 1)


    def laplace(width: int = 3):
        return Laplace(linear, width, label="made")


    def linear(in_shape, out_shape):
        layers = [nn.Flatten(), nn.Linear(math.prod(in_shape), math.prod(out_shape)), nn.Unflatten(1, out_shape)]
        return nn.Sequential(*layers)


    class Sharper(Bernoulli):
        def __init__(self, sharpness=2.0, **kwargs):
            super().__init__(**kwargs)
            self.sharpness = sharpness


    def iwae(log_weights):
        return log_weights.log_w.logsumexp(0) - math.log(len(log_weights.log_w))


    def bare_prior():
        return dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)


    def warm_up(optimizer, steps=10):
        return torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=steps)


    class Broken:
        def __init__(self):
            raise KeyError("nowhere")


    answer = 42
"""


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A user's own module, importable as ``foreign_pieces``."""
    (tmp_path / "foreign_pieces.py").write_text(textwrap.dedent(FOREIGN))
    (tmp_path / "broken_module.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("foreign_pieces", None)


@pytest.fixture
def config_file(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def build(*argv, x_shape=(1, 8, 8)):
    return parse(argv).build_vae(x_shape)


# What overrides what


def test_another_class_gets_its_own_defaults_and_nothing_of_the_class_it_replaces(config_file):
    seven = config_file("objective: {class: ELBO, num_particles: 7}")
    assert parse(["--config", seven]).values["objective"] == {"class": "ELBO", "num_particles": 7}
    renyi = parse(["--config", seven, "--objective", "RenyiELBO"]).values["objective"]
    assert renyi["num_particles"] == 2  # RenyiELBO's own default
    assert parse(["--config", seven, "--objective", "MeanFieldELBO"]).values["objective"]["num_particles"] == 1


def test_another_class_over_a_saved_configuration_gets_its_own_defaults_and_keeps_the_network(config_file):
    saved = config_file(parse(["--objective.num_particles", "7", "--likelihood.network.hidden", "[5]"]).to_yaml())
    values = parse(["--config", saved, "--objective", "Trace_ELBO", "--likelihood", "Normal"]).values
    assert values["objective"]["num_particles"] == 1
    assert (values["likelihood"]["network"]["hidden"], values["likelihood"]["scale"]) == ([5], 1.0)


@pytest.mark.parametrize("role", ["likelihood", "posterior"])
def test_a_piece_exchanged_keeps_the_network_of_its_role(role, config_file):
    other = {"likelihood": "Normal", "posterior": "FullCovarianceNormal"}[role]
    article = parse(["--config", "article"]).values[role]["network"]
    assert article["hidden"] in ([150, 300, 500], [500, 300, 150])
    argv = ["--config", "article", f"--{role}", other]
    assert parse(argv).values[role]["network"] == article
    assert Config.from_yaml(parse(argv).to_yaml()).to_yaml() == parse(argv).to_yaml()
    changed = parse([*argv, f"--{role}.network.hidden", "[7]"]).values[role]["network"]
    assert changed == {**article, "hidden": [7]}
    named = parse([*argv, f"--{role}.network", "MLP"]).values[role]["network"]
    assert (tuple(named["hidden"]), named["activation"]) == (networks.MLP().hidden, networks.MLP().activation)
    # by a file over the preset digits, and by an option over that file
    digits = parse([]).values[role]["network"]
    mine = config_file(f"{role}: {{class: {other}, floor: 0.01}}")
    assert parse(["--config", mine]).values[role]["network"] == digits
    third = {"likelihood": "Laplace", "posterior": "Laplace"}[role]
    assert parse(["--config", mine, f"--{role}", third]).values[role]["network"] == digits


def test_a_network_goes_with_no_piece_that_has_none_by_that_name():
    values = parse(["--posterior", "TwoLevel", "--posterior.top_dim", "1"]).values["posterior"]
    assert values["network"] == parse([]).values["posterior"]["network"]
    assert tuple(values["top_network"]["hidden"]) == networks.MLP().hidden
    assert "network" not in parse(["--prior", "MixtureOfNormals"]).values["prior"]
    with pytest.raises(ValueError, match="network"):
        parse(["--prior", "MixtureOfNormals", "--prior.network", "MLP"])


def test_naming_the_class_that_is_there_already_starts_from_its_defaults_too(config_file):
    seven = config_file("objective: {class: ELBO, num_particles: 7}")
    assert parse(["--config", seven, "--objective", "ELBO"]).values["objective"]["num_particles"] == 1


def test_an_argument_without_a_class_changes_what_is_there(config_file):
    seven = config_file("objective: {class: MeanFieldELBO, num_particles: 7}")
    values = parse(["--config", seven, "--objective.num_particles", "3"]).values
    assert values["objective"] == {"class": "MeanFieldELBO", "num_particles": 3}
    values = parse(["--config", "article", "--likelihood.network.hidden", "[5]"]).values
    assert values["likelihood"]["network"] == {
        "class": "MLP",
        "hidden": [5],
        "activation": "softplus",
        "batch_norm": False,
        "init": "he_normal",
        "dropout": 0.0,
        "layer_norm": False,
    }
    assert values["likelihood"]["allow_grey"] is True


def test_the_order_of_options_does_not_matter():
    one = parse(["--objective.num_particles", "3", "--objective", "RenyiELBO"])
    other = parse(["--objective", "RenyiELBO", "--objective.num_particles", "3"])
    assert one.values == other.values
    assert one.values["objective"]["num_particles"] == 3


def test_another_network_inside_a_piece_leaves_the_rest_of_the_piece():
    values = parse(["--config", "article", "--likelihood.network", "MLP"]).values
    assert tuple(values["likelihood"]["network"]["hidden"]) == networks.MLP().hidden
    assert values["likelihood"]["allow_grey"] is True


def test_a_file_says_what_differs_from_digits(config_file):
    digits = parse([]).values
    values = parse(["--config", config_file("epochs: 3\nposterior: {scale: std}\nlikelihood: Normal")]).values
    assert values["epochs"] == 3
    assert values["posterior"] == {**digits["posterior"], "scale": "std"}
    assert values["likelihood"]["class"] == "Normal"
    assert values["likelihood"]["network"] == digits["likelihood"]["network"]
    assert values["data"] == digits["data"]


def test_another_data_set_keeps_the_arguments_of_load(config_file):
    chosen = parse(["--data", "MNIST", "--config", config_file("data: {validation: 7}")]).values["data"]
    assert (chosen["name"], chosen["validation"]) == ("MNIST", 7)
    assert parse(["--data", "MNIST"]).values["data"]["binarize"] is None  # its own way, not that of digits
    assert parse(["--config", config_file("data: MNIST")]).values["data"]["name"] == "MNIST"


def test_without_a_config_the_preset_digits_is_used():
    assert parse([]).to_yaml() == parse(["--config", "digits"]).to_yaml()


# Every value, and the same again


COMMAND_LINES = [
    [],
    ["--config", "article"],
    ["--config", "article-normal", "--prior.latent_dim", "5", "--seed", "7"],
    ["--objective", "RenyiELBO", "--objective.alpha", "0.5"],
    ["--objective", "pyro.infer.Trace_ELBO", "--scheduler", "ReduceLROnPlateau", "--clip_norm", "1e2"],
    ["--optimizer", "SGD", "--optimizer.momentum=0.9", "--scheduler=StepLR", "--scheduler.step_size=3"],
    ["--likelihood.network.hidden", "[]", "--data.validation", "200", "--data.root", "/1e5", "--compile", "off"],
]


@pytest.mark.parametrize("argv", COMMAND_LINES, ids=" ".join)
def test_a_printed_configuration_prints_itself(argv, config_file):
    text = parse(argv).to_yaml()
    assert parse(["--config", config_file(text)]).to_yaml() == text
    assert Config.from_yaml(text).to_yaml() == text
    assert yaml.safe_load(text) == parse(argv).values  # any YAML reader gets the same


def test_every_value_is_explicit():
    values = parse(["--device", "auto", "--out", "x"]).values
    assert values["device"] != "auto"
    assert values["optimizer"]["betas"] == [0.9, 0.999]
    assert values["likelihood"]["network"]["class"] == "MLP"
    assert values["data"]["threshold"] == 0.5
    assert values["scheduler"] is None
    assert not {"out", "resume", "config", "print_config"} & values.keys()


def test_a_configuration_of_another_machine_can_be_read_where_its_device_is_not():
    assert Config.from_yaml("device: cuda").values["device"] == "cuda"


def test_numbers_and_words_are_those_of_yaml_1_2(config_file):
    values = parse(["--config", config_file("optimizer: {lr: 1e-4}\ncompile: off")]).values
    assert values["optimizer"]["lr"] == 1e-4
    assert values["compile"] == "off"


@pytest.mark.parametrize("text", ["{a: [no, yes], no: [on, off], b: 010}", "{a: {y: [Yes, 1e3]}, b: real}"])
def test_a_mapping_means_the_same_as_an_option_and_in_a_file(text, config_file):
    by_option = parse(["--data", "MNIST", "--data.columns", text]).values["data"]
    by_file = parse(["--data", "MNIST", "--config", config_file(f"data: {{columns: {text}}}")]).values["data"]
    assert by_option["columns"] == by_file["columns"]
    load = arguments_of(data.load, "data")
    assert load.objects(by_file | {"columns": text}) == load.objects(by_file)


def test_a_mapping_with_a_key_twice_is_refused():
    with pytest.raises(ValueError, match=r"--data.columns is not valid YAML: .*the key 'a' stands twice"):
        parse(["--data", "MNIST", "--data.columns", "{a: real, a: skip}"])


def test_the_same_seed_makes_the_same_parameters():
    config = parse(["--seed", "3"])
    one, same, other = config.build_vae((64,)), config.build_vae((64,)), build("--seed", "4", x_shape=(64,))
    torch.testing.assert_close(one.state_dict(), same.state_dict(), rtol=0, atol=0)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_building_makes_what_the_configuration_says():
    config = parse(["--config", "article-normal", "--optimizer", "SGD", "--optimizer.momentum", "0.9"])
    vae = config.build_vae((1, 28, 28))
    assert isinstance(vae.likelihood, likelihoods.Normal)
    assert 2 * vae.likelihood.scale**2 == pytest.approx(1, rel=1e-15)
    widths = [layer.out_features for layer in vae.posterior.modules() if isinstance(layer, torch.nn.Linear)]
    assert widths == [500, 300, 150, 4]
    arguments = config.build_fit_arguments()
    assert arguments["objective"] == objectives.ELBO()
    assert arguments["epochs"] == 200
    optimizer = arguments["optimizer"](vae.parameters())
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9


def test_an_optimizer_left_at_its_defaults_may_be_fused():
    optimizer = parse(["--optimizer", "Adam"]).build_fit_arguments()["optimizer"]
    assert not {"fused", "foreach", "differentiable"} & optimizer.keywords.keys()
    assert parse(["--optimizer.fused", "false"]).build_fit_arguments()["optimizer"].keywords["fused"] is False


def test_a_run_is_named_after_its_configuration_or_its_data(config_file):
    assert parse([]).name == "digits"
    assert parse(["--data", "MNIST"]).name == "MNIST"
    assert parse(["--data", "."]).name == Path.cwd().stem
    assert parse(["--config", "article-normal"]).name == "article-normal"
    assert parse(["--config", config_file("epochs: 1")]).name == "mine"


@pytest.mark.parametrize("name", presets())
def test_presets_say_what_to_expect_and_hold_nothing_that_is_not_kept(name):
    text = presets()[name]
    assert text.startswith("# ")
    written, read = yaml.safe_load(text), parse(["--config", name]).values

    def kept(part, whole):
        if isinstance(part, dict):
            return all(kept(value, whole[key]) for key, value in part.items())
        return part in (whole, "auto")

    assert kept(written, read)


def test_the_article_is_the_articles():
    values = parse(["--config", "article"]).values
    assert values["data"]["name"] == "MNIST"
    assert values["data"]["binarize"] == "none"
    assert values["posterior"]["scale"] == "std"
    assert values["posterior"]["network"]["hidden"] == [500, 300, 150]
    assert values["likelihood"]["network"]["hidden"] == [150, 300, 500]
    normal = parse(["--config", "article-normal"]).values
    assert normal["likelihood"].pop("scale") == math.sqrt(0.5)
    assert values["likelihood"].pop("allow_grey") is True
    assert normal["likelihood"].pop("learn") == "fixed"
    normal["likelihood"].pop("floor")  # of a learned scale
    assert normal["likelihood"].pop("class") == "Normal"
    assert values["likelihood"].pop("class") == "Bernoulli"
    assert normal == values


# Names


@pytest.mark.parametrize("name", sorted(KINDS["optimizer"].known.keys() - {"Muon"}))
def test_every_torch_optimizer_can_be_chosen(name):
    optimizer = parse(["--optimizer", name]).build_fit_arguments()["optimizer"]
    assert isinstance(optimizer([torch.nn.Parameter(torch.zeros(3))]), getattr(torch.optim, name))


@pytest.mark.parametrize(
    "argv",
    [
        ["LambdaLR", "--scheduler.lr_lambda", "copy.copy"],
        ["MultiplicativeLR", "--scheduler.lr_lambda", "copy.copy"],
        ["StepLR", "--scheduler.step_size", "3"],
        ["MultiStepLR", "--scheduler.milestones", "[3, 5]"],
        ["ConstantLR"],
        ["LinearLR"],
        ["ExponentialLR", "--scheduler.gamma", "0.9"],
        ["PolynomialLR"],
        ["CosineAnnealingLR", "--scheduler.T_max", "10"],
        ["ReduceLROnPlateau", "--scheduler.patience", "2"],
        ["CyclicLR", "--scheduler.base_lr", "0.1", "--scheduler.max_lr", "1", "--optimizer", "SGD"],
        ["CosineAnnealingWarmRestarts", "--scheduler.T_0", "4"],
        ["OneCycleLR", "--scheduler.max_lr", "0.1", "--scheduler.total_steps", "10"],
    ],
    ids=lambda argv: argv[0],
)
def test_every_torch_scheduler_can_be_chosen(argv):
    config = parse(["--scheduler", *argv])
    assert Config.from_yaml(config.to_yaml(), trust=True).to_yaml() == config.to_yaml()


def test_a_schedule_of_a_run_of_torch_2_6_is_read():
    """Its schedules took a word more, and said so in config.yaml."""
    text = parse(["--scheduler", "StepLR", "--scheduler.step_size", "2"]).to_yaml()
    assert "verbose" not in text
    old = text.replace("  step_size: 2\n", "  step_size: 2\n  verbose: deprecated\n")
    assert old != text
    assert Config.from_yaml(old, trust=True).to_yaml() == text
    with pytest.raises(ValueError, match=r"scheduler\.verbose is unknown"):
        parse(["--scheduler", "StepLR", "--scheduler.step_size", "2", "--scheduler.verbose", "true"])


def test_short_names_are_those_of_the_library_and_of_pyro():
    assert {"ELBO", "MeanFieldELBO", "ArticleELBO"} <= KINDS["objective"].known.keys()
    assert {"Trace_ELBO", "TraceMeanField_ELBO", "RenyiELBO"} <= KINDS["objective"].known.keys()
    assert KINDS["objective"].known["ELBO"] is objectives.ELBO
    ours = {n for n in objectives.__all__ if inspect.isclass(c := getattr(objectives, n)) and _is_piece(c)}
    assert ours - KINDS["objective"].known.keys() == {"Regularized"}, "a family is missing from `pieces._FAMILIES`"
    for name, helper in (("objective", "LogWeights"), ("likelihood", "Likelihood"), ("prior", "Prior")):
        assert helper not in KINDS[name].known


# Foreign pieces


def test_a_foreign_class_by_import_path_unannotated(foreign):
    argv = ["--likelihood", "foreign_pieces.Laplace", "--likelihood.width", "3", "--likelihood.scale", "1e-1"]
    config = parse([*argv, "--likelihood.network.hidden", "[7]"])
    piece = config.build_vae((1, 8, 8)).likelihood
    assert (piece.width, piece.scale, piece.label) == (3, 0.1, "plain")
    assert piece.factory == networks.MLP([7], activation="tanh")
    assert config.values["likelihood"]["class"] == "foreign_pieces.Laplace"
    assert Config.from_yaml(config.to_yaml(), trust=True).to_yaml() == config.to_yaml()


def test_a_foreign_factory_of_a_piece(foreign):
    piece = build("--likelihood", "foreign_pieces.laplace", "--likelihood.width", "5").likelihood
    assert (piece.width, piece.label) == (5, "made")


def test_a_foreign_network_is_a_function_of_shapes(foreign):
    vae = build("--likelihood.network", "foreign_pieces.linear")
    assert [type(layer).__name__ for layer in vae.likelihood.logits.network] == ["Flatten", "Linear", "Unflatten"]


def test_a_foreign_subclass_takes_what_it_hands_to_its_base(foreign):
    argv = ["--likelihood", "foreign_pieces.Sharper", "--likelihood.allow_grey", "true"]
    config = parse([*argv, "--likelihood.network.hidden", "[7]"])
    assert config.values["likelihood"]["sharpness"] == 2.0
    assert config.values["likelihood"]["network"]["hidden"] == [7]
    assert config.build_vae((64,)).likelihood.allow_grey is True


def test_a_foreign_objective_is_a_function_of_log_weights(foreign):
    config = parse(["--objective", "foreign_pieces.iwae"])
    assert config.values["objective"] == {"class": "foreign_pieces.iwae"}
    assert config.build_fit_arguments()["objective"] is sys.modules["foreign_pieces"].iwae


def test_a_foreign_scheduler_is_a_function_of_the_optimizer(foreign):
    arguments = parse(["--scheduler", "foreign_pieces.warm_up", "--scheduler.steps", "4"]).build_fit_arguments()
    scheduler = arguments["scheduler"](arguments["optimizer"]([torch.nn.Parameter(torch.zeros(1))]))
    assert scheduler.total_iters == 4


# What does not fit


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--objective RenyELBO", ["--objective", "did you mean RenyiELBO", "Trace_ELBO", "import path"]),
        ("--likelihood bernoulli", ["did you mean Bernoulli", "Normal"]),
        ("--likelihood.network MPL", ["--likelihood.network", "did you mean MLP"]),
        ("--prior null", ["--prior", "StandardNormal"]),
        ("--prior [1]", ["--prior", "'[1]'"]),
        ("--epoch 3", ["--epoch is unknown; did you mean --epochs?"]),
        ("--batch-size 3", ["did you mean --batch_size?"]),
        ("--likelihood.alow_grey true", ["--likelihood.alow_grey is unknown; did you mean --likelihood.allow_grey?"]),
        ("--likelihood.network.hiden [3]", ["did you mean --likelihood.network.hidden?"]),
        ("--data.binarise none", ["--data.binarise is unknown; did you mean --data.binarize?"]),
        ("--data.binarize thresh", ["--data.binarize", "one of none, threshold"]),
        ("--prior.latent_dim.x 3", ["--prior.latent_dim.x"]),
        ("--config artcle", ["--config", "did you mean article", "article-normal"]),
        ("--resume nowhere", ["--resume", "nowhere"]),
        ("--prior.latent_dim 2.5", ["--prior.latent_dim is '2.5'", "an integer"]),
        ("--prior.latent_dim 0", ["latent_dim is 0", "positive integer"]),
        ("--likelihood Normal --likelihood.scale -1", ["--likelihood Normal", "scale is -1.0", "above zero"]),
        ("--likelihood Normal --likelihood.scale .nan", ["scale is nan", "above zero"]),
        ("--likelihood.network.hidden 300", ["--likelihood.network.hidden", "a list"]),
        ("--likelihood.network.hidden [0]", ["--likelihood.network MLP", "hidden[0] is 0"]),
        ("--likelihood.network.activation rel", ["--likelihood.network.activation", "one of softplus, relu"]),
        ("--likelihood.allow_grey maybe", ["--likelihood.allow_grey is 'maybe'", "true or false"]),
        ("--objective.num_particles 0", ["num_particles is 0", "positive integer"]),
        ("--optimizer.lr abc", ["--optimizer.lr is 'abc'", "a number"]),
        ("--optimizer.lr -1", ["--optimizer Adam", "learning rate", "-1"]),
        ("--optimizer.lr .nan", ["--optimizer Adam", "learning rate", "nan"]),
        ("--optimizer LBFGS", ["LBFGS", "closure"]),
        ("--optimizer SparseAdam", ["SparseAdam", "sparse gradients"]),
        ("--objective ReweightedWakeSleep", ["ReweightedWakeSleep", "two losses"]),
        ("--optimizer.params 3", ["--optimizer.params is unknown"]),
        ("--scheduler SequentialLR", ["SequentialLR", "import path"]),
        ("--scheduler StepLR --scheduler.step_size 0", ["--scheduler StepLR", "zero"]),
        ("--scheduler LambdaLR --scheduler.lr_lambda math.sqrt", ["--scheduler LambdaLR", "__dict__"]),
        ("--scheduler StepLR", ["--scheduler.step_size is missing"]),
        ("--scheduler.step_size 3", ["--scheduler has arguments but no class", "StepLR"]),
        ("--epochs many", ["--epochs is 'many'", "an integer"]),
        ("--epochs", ["'--epochs' has no value"]),
        ("--out=", ["'--out=' has no value"]),
        ("--epochs --seed 3", ["'--epochs' has no value"]),
        ("--config /", ["--config is '/'", "a file"]),
        ("--epochs 3 4", ["'4'", "lists"]),
        ("--seed null", ["--seed"]),
        ("--device abacus", ["device", "abacus", "cuda"]),
        ("--objective foreign_pieces.nothing", ["--objective foreign_pieces.nothing", "nothing"]),
        ("--objective no_such_module.f", ["No module named 'no_such_module'"]),
        ("--objective broken_module.f", ["a_module_that_is_not_there"]),
        ("--objective foreign_pieces.answer", ["is a int", "class or a function"]),
        ("--objective foreign_pieces.iwae --objective.k 3", ["--objective.k", "takes no arguments"]),
        ("--objective torch.sum", ["torch.sum", "signature"]),
        ("--likelihood foreign_pieces.Laplace", ["--likelihood.width is missing"]),
        ("--likelihood foreign_pieces.Broken", ["--likelihood foreign_pieces.Broken", "nowhere"]),
        ("--prior foreign_pieces.bare_prior", ["--prior", "returned a distribution"]),
    ],
)
def test_what_does_not_fit_is_named_in_one_sentence(argv, words, foreign):
    with pytest.raises((ValueError, OSError)) as caught:
        parse(argv.split())
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: [", ["mine.yaml", "not valid YAML"]),
        ("- 3", ["mine.yaml", "list"]),
        ("", ["mine.yaml"]),
        ("epoch: 3", ["did you mean epochs"]),
        ("out: here", ["--out", "command line"]),
        ("prior: 3", ["--prior is 3"]),
        ("prior: {class: 3}", ["--prior is 3"]),
        ("prior: {class: StandardNormal, dim: 3}", ["--prior.dim is unknown", "latent_dim"]),
        ("likelihood: {class: Bernoulli, network: [3]}", ["--likelihood.network is [3]"]),
        ("data: null", ["--data"]),
        ("optimizer: {lr: {a: 1}}", ["--optimizer.lr"]),
        ("epochs: null", ["--epochs"]),
    ],
)
def test_a_file_that_does_not_fit_is_named_in_one_sentence(text, words, config_file):
    with pytest.raises(ValueError) as caught:
        parse(["--config", config_file(text)])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
