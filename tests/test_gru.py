"""What is the GRU's own: a loop in NumPy, its units, its names, and that it learns; the rest is in `test_policies`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from agents import policies
from agents.learning import demonstrations, learner
from agents.policies import PolicyConfig
from agents.policies.gru import GRU
from agents.policies.transformer import Transformer
from agents.runs import config as configs
from analysis import weights
from envs import tokens
from tests import tiny
from tests.test_policies import FAMILIES, Family
from tests.thrift import some

POLICY = GRU(FAMILIES["gru"])
WIDTH = POLICY.config.width


@pytest.fixture(scope="module")
def family():
    return Family(POLICY.config)


def reference(parameters, sequence):
    """Logits, values and stream [B, S, layers + 1, width] of the GRU of arXiv 1406.1078v1, a token at a time.

    In float64, with whole recurrent matrices that are zero between groups.
    """
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters)
    blocks, hidden, groups = tree["blocks"], POLICY.config.hidden, POLICY.config.heads
    size = hidden // groups

    def normalised(x, scale):
        return x / np.sqrt(np.mean(x**2) + 1e-6) * scale

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def gate(columns, which):
        """The columns [..., hidden] of one gate, from [..., groups, 3, size]."""
        return columns.reshape(*columns.shape[:-1], groups, 3, size)[..., which, :].reshape(*columns.shape[:-1], -1)

    def whole(kernel, which):
        matrix = np.zeros((hidden, hidden))
        for group in range(groups):
            own = slice(group * size, (group + 1) * size)
            matrix[own, own] = gate(kernel, which)[:, own]
        return matrix

    logits, values, streams = [], [], []
    for row in np.asarray(sequence):
        state = np.zeros((POLICY.config.layers, hidden))
        for token in row:
            x = tree["embedding"]["embedding"][token] * np.sqrt(WIDTH)
            stream = [x]
            for layer in range(POLICY.config.layers):
                given = normalised(x, blocks["given_norm"]["scale"][layer]) @ blocks["given"]["kernel"][layer]
                given = given + blocks["given"]["bias"][layer]
                kernel, h = blocks["recurrent"]["kernel"][layer], state[layer]
                r = sigmoid(gate(given, 0) + h @ whole(kernel, 0))
                z = sigmoid(gate(given, 1) + h @ whole(kernel, 1))
                new = np.tanh(gate(given, 2) + r * (h @ whole(kernel, 2)))
                state[layer] = z * h + (1 - z) * new
                x = x + state[layer] @ blocks["out"]["kernel"][layer]
                stream.append(x)
            last = normalised(x, tree["norm"]["scale"])
            logits.append(last @ tree["embedding"]["embedding"].T)
            values.append(last @ tree["value"]["kernel"][:, 0])
            streams.append(stream)
    shape = sequence.shape
    return (np.reshape(x, (*shape, *np.shape(x)[1:])) for x in (logits, values, streams))


def test_it_is_the_gated_recurrent_unit_of_a_plain_loop(family):
    sequence = jax.random.randint(jax.random.key(4), (3, 29), 0, tokens.FIRST)
    both = family.predictions(sequence), reference(family.parameters, sequence)
    for found, wanted in zip(*both, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, atol=3e-5)


@pytest.mark.parametrize("stored", some(["bfloat16", "float32"]))
def test_its_state_stays_in_float32(stored):
    policy = GRU(dataclasses.replace(POLICY.config, compute_dtype="bfloat16", parameter_dtype=stored))
    tokens_ = jnp.zeros((3, 29), jnp.int32)
    _, cache = policy.decode(policy.init(jax.random.key(3)), policy.empty_cache(3, 29), tokens_, 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype(jnp.float32)}


def test_fresh_units_forget_at_many_rates():
    config = PolicyConfig(family="gru", width=8, layers=2, heads=4, hidden=512)
    bias = np.asarray(GRU(config).init(jax.random.key(0))["blocks"]["given"]["bias"])
    reset, update, new = np.moveaxis(bias.reshape(2, 4, 3, 128), 2, 0)
    np.testing.assert_array_equal(reset, 0.0)
    np.testing.assert_array_equal(new, 0.0)
    spans = 1 + np.exp(update)  # a unit that keeps z of its state forgets in 1 / (1 - z) tokens
    assert spans.min() >= 2
    assert spans.max() <= 128
    np.testing.assert_allclose(np.quantile(spans, [0.25, 0.5, 0.75]), 1 + 127 ** np.array([0.25, 0.5, 0.75]), rtol=0.2)


def test_a_config_makes_its_family_and_refuses_groups_that_do_not_divide_the_units():
    assert policies.make(POLICY.config) == POLICY
    assert policies.make(PolicyConfig()) == Transformer(PolicyConfig())
    assert PolicyConfig(family="gru", width=6, heads=4, hidden=8).width == 6  # a width that rotary positions forbid
    with pytest.raises(ValueError, match=r"policy\.hidden=30: use a multiple of policy\.heads = 4"):
        PolicyConfig(family="gru", heads=4, hidden=30)
    with pytest.raises(configs.ConfigError, match=r"--policy\.family foo: choose one of transformer, gru") as caught:
        train.parse(["--policy.family", "foo"])
    assert "\n" not in str(caught.value)
    document = configs.to_dict(tiny.CONFIG)
    document["policy"]["family"] = "lstm"
    with pytest.raises(configs.ConfigError, match=r"config\.policy\.family='lstm': not a valid value"):
        configs.from_dict(document)


def test_its_matrices_have_names_in_the_order_of_the_forward_pass(family):
    matrices = weights.split(jax.tree.map(lambda x: x[None], family.parameters))
    block = ("given_norm", "given", "given.bias", "recurrent", "out")
    assert list(matrices) == ["embedding", *(f"blocks.{i}.{role}" for i in range(3) for role in block), "norm", "value"]
    assert [weights.kind(f"blocks.0.{role}") for role in block] == ["norm", "kernel", "bias", "kernel", "kernel"]


@pytest.mark.slow
@pytest.mark.long
def test_pretraining_takes_it_far_below_what_counting_tokens_gives():
    config = tiny.changed(
        policy={"family": "gru", "width": 32, "hidden": 64},
        pretrain={"updates": 120, "chunk": 20, "episodes": 32, "learning_rate": 1e-2, "warmup": 5},
        population={"seeds": 1, "microbatch": 16},
    )
    world, params = config.world.make()
    spoken = demonstrations.persona_episodes(
        config.pretrain, world, params, jax.random.key(1), 256, learner.Shards()
    ).tokens
    actions = world.action_positions()
    others = np.setdiff1d(np.arange(1, spoken.shape[1]), actions)

    def counted(where):
        """Entropy of the tokens at some positions, in nats."""
        share = np.bincount(np.asarray(spoken)[:, where].ravel()) / spoken[:, where].size
        return -np.sum(share[share > 0] * np.log(share[share > 0]))

    _, metrics = tiny.train_stage(config, "pretrain")
    observation, action = (metrics[f"{name}_loss"][0, -10:].mean() for name in ("observation", "action"))
    assert observation < 0.5 * counted(others)
    assert action < counted(actions) - 0.1
