"""NumPyro as in its VAE example: all steps of a call inside one jit, batches gathered by index."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.example_libraries import stax
from numpyro.infer import SVI, Trace_ELBO

from contenders import Run
from contenders.setting import Setting

_PRECISION = {"highest": "highest", "high": "tensorfloat32"}  # jax's words for torch's; its own default is TF32


def svi(setting: Setting) -> Run:
    """NumPyro's SVI and Adam."""
    if setting.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != "gpu":
        raise RuntimeError('jax sees no GPU: install "jax[cuda]" into its environment')
    jax.config.update("jax_default_matmul_precision", _PRECISION[setting.matmul_precision])
    rows = jnp.asarray(setting.pixels())
    encoder, decoder = _mlp(setting.encoder_sizes), _mlp(setting.decoder_sizes)

    def model(x: jax.Array) -> None:
        decode = numpyro.module("decoder", decoder, (len(x), setting.latent))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(setting.latent), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: jax.Array) -> None:
        encode = numpyro.module("encoder", encoder, x.shape)
        mean, raw = jnp.split(encode(x), 2, axis=-1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(mean, jax.nn.softplus(raw) + 1e-5).to_event(1))

    trainer = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO(num_particles=setting.num_particles))

    @functools.partial(jax.jit, donate_argnums=0)
    def take(carry: Any, rows: jax.Array, steps: int) -> Any:
        def step(_: int, carry: Any) -> Any:
            state, key, total = carry
            key, draw = random.split(key)
            index = random.randint(draw, (setting.batch_size,), 0, len(rows))
            state, loss = trainer.update(state, rows[index])
            return state, key, total + loss

        return lax.fori_loop(0, steps, step, carry)

    state = trainer.init(random.key(0), rows[: setting.batch_size])
    carry = (state, random.key(1), jnp.zeros(()))

    def run(steps: int) -> int:
        nonlocal carry
        carry = jax.block_until_ready(take(carry, rows, steps))
        return steps

    return run


def _mlp(sizes: tuple[int, ...]) -> Any:
    layers = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        normal = jax.nn.initializers.normal(math.sqrt(2 / fan_in))
        layers += [stax.Dense(fan_out, W_init=normal, b_init=normal), stax.Softplus]
    return stax.serial(*layers[:-1])
