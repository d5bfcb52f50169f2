"""The GRU policy: against a loop in NumPy, cached and full forward, causality, interventions, and that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from agents import config as configs
from agents import demonstrations, learner, policies
from agents.gru import GRU
from agents.policies import Intervention, PolicyConfig
from agents.transformer import Transformer
from analysis import weights
from envs import tokens
from tests import tiny

POLICY = GRU(PolicyConfig(family="gru", width=20, layers=3, heads=2, hidden=24))
SITES, WIDTH = POLICY.config.layers + 1, POLICY.config.width
BATCH, LENGTH = 3, 29


@pytest.fixture(scope="module")
def parameters():
    """As they might be after training: the initial value head and norms would hide what they do."""
    leaves, structure = jax.tree.flatten(POLICY.init(jax.random.key(3)))
    keys = jax.random.split(jax.random.key(8), len(leaves))
    moved = [x + 0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, moved)


@pytest.fixture(scope="module")
def sequence():
    return jax.random.randint(jax.random.key(4), (BATCH, LENGTH), 0, tokens.SIZE)


@jax.jit
def _predictions(parameters, sequence, change):
    outputs = POLICY.forward(parameters, sequence, intervention=change, capture=tuple(range(LENGTH)))
    return (*POLICY.heads(parameters, outputs.hidden), outputs.residual)


def predictions(parameters, sequence, steering=None, ablation=None):
    """Logits, values and the whole stream; every intervention has one shape, so that one program serves all tests."""
    steering = jnp.zeros((SITES, WIDTH)) if steering is None else steering
    steering = jnp.broadcast_to(steering, (BATCH, LENGTH, SITES, WIDTH))
    ablation = jnp.zeros((SITES, 2, WIDTH)) if ablation is None else ablation
    return _predictions(parameters, sequence, Intervention(steering, ablation))


@jax.jit
def decoded(parameters, cache, chunk, start, steering):
    outputs, cache = POLICY.decode(parameters, cache, chunk, start, intervention=Intervention(steering))
    return (*POLICY.heads(parameters, outputs.hidden), cache)


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


def test_it_is_the_gated_recurrent_unit_of_a_plain_loop(parameters, sequence):
    for found, wanted in zip(predictions(parameters, sequence), reference(parameters, sequence), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, atol=3e-5)


@pytest.mark.parametrize("chunks", [[1] * LENGTH, [7, 7, 7, 7, 1], [20, 9]])
@pytest.mark.parametrize("longer", [0, 13])
def test_cached_decoding_equals_the_full_forward_at_every_position(parameters, sequence, chunks, longer):
    steering = jax.random.normal(jax.random.key(9), (SITES, WIDTH))
    for push in (jnp.zeros_like(steering), steering):
        logits, values, _ = predictions(parameters, sequence, push)
        cache, start = POLICY.empty_cache(BATCH, LENGTH + longer), 0
        for size in chunks:
            chunk = sequence[:, start : start + size]
            found, value, cache = decoded(parameters, cache, chunk, start, push)
            np.testing.assert_allclose(found, logits[:, start : start + size], atol=2e-5)
            np.testing.assert_allclose(value, values[:, start : start + size], atol=2e-5)
            start += size


def test_reading_from_the_first_token_forgets_what_the_cache_held(parameters, sequence):
    push = jnp.zeros((SITES, WIDTH))
    fresh, _, _ = decoded(parameters, POLICY.empty_cache(BATCH, LENGTH), sequence[:, :7], 0, push)
    _, _, used = decoded(parameters, POLICY.empty_cache(BATCH, LENGTH), sequence[:, 7:14], 0, push)
    np.testing.assert_array_equal(decoded(parameters, used, sequence[:, :7], 0, push)[0], fresh)
    assert jnp.abs(decoded(parameters, used, sequence[:, :7], 7, push)[0] - fresh).max() > 1e-2


def test_asking_for_some_positions_gives_the_same_there(parameters, sequence):
    at = np.array([2, 3, 17, LENGTH - 2])

    @functools.partial(jax.jit, static_argnames="some")
    def gradient(parameters, some):
        def loss(parameters):
            outputs = POLICY.forward(parameters, sequence, at=at if some else None)
            return jnp.sum(jnp.sin(outputs.hidden if some else outputs.hidden[:, at]))

        return jax.value_and_grad(loss)(parameters)

    both = (jax.tree.leaves(gradient(parameters, some)) for some in (True, False))
    for some, every in zip(*both, strict=True):
        np.testing.assert_allclose(some, every, atol=1e-4)
    cache = POLICY.empty_cache(BATCH, LENGTH)
    few, after = POLICY.decode(parameters, cache, sequence[:, :7], 0, at=np.array([2, 5]))
    all_, same = POLICY.decode(parameters, cache, sequence[:, :7], 0)
    np.testing.assert_allclose(few.hidden, all_.hidden[:, np.array([2, 5])], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after, same)


def test_no_position_sees_the_future_and_the_last_sees_the_first(parameters, sequence):
    logits, _, _ = predictions(parameters, sequence)
    for position in range(LENGTH):
        changed = sequence.at[:, position].set((sequence[:, position] + 1) % tokens.SIZE)
        found, _, _ = predictions(parameters, changed)
        np.testing.assert_array_equal(found[:, :position], logits[:, :position])
        assert jnp.all(jnp.any(found[:, position] != logits[:, position], axis=-1))
    changed = sequence.at[:, 0].set((sequence[:, 0] + 1) % tokens.SIZE)
    assert jnp.abs(predictions(parameters, changed)[0][:, -1] - logits[:, -1]).max() > 1e-4


def test_capture_takes_positions_of_each_sequence_and_some_layers(parameters, sequence):
    *_, every = predictions(parameters, sequence)
    own = jax.random.randint(jax.random.key(7), (BATCH, 2), 0, LENGTH)
    found = POLICY.forward(parameters, sequence, capture=own, capture_layers=(SITES - 1, 0)).residual
    assert found is not None
    expected = every[jnp.arange(BATCH)[:, None], own][:, :, jnp.array([SITES - 1, 0])]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_steering_and_ablation_change_their_layer_as_told_and_only_what_follows(parameters, sequence):
    *_, plain = predictions(parameters, sequence)
    directions = jnp.linalg.qr(jax.random.normal(jax.random.key(5), (WIDTH, 2)))[0].T
    for site in range(SITES):
        steering = jnp.zeros((BATCH, LENGTH, SITES, WIDTH)).at[:, 10:, site].set(3 * directions[0])
        *_, pushed = predictions(parameters, sequence, steering)
        difference = pushed - plain
        np.testing.assert_array_equal(difference[:, :10], 0.0)
        np.testing.assert_array_equal(difference[:, :, :site], 0.0)
        np.testing.assert_allclose(
            difference[:, 10:, site], jnp.broadcast_to(3 * directions[0], (BATCH, 19, WIDTH)), atol=1e-5
        )
        assert site == SITES - 1 or jnp.abs(difference[:, 10:, site + 1] - difference[:, 10:, site]).max() > 1e-3

        ablation = jnp.zeros((SITES, 2, WIDTH)).at[site].set(directions)
        *_, without = predictions(parameters, sequence, None, ablation)
        expected = plain[:, :, site] - plain[:, :, site] @ directions.T @ directions
        np.testing.assert_allclose(without[:, :, site], expected, atol=1e-5)
        *_, both = predictions(parameters, sequence, steering, ablation)
        np.testing.assert_allclose((both[:, 10:, site] @ directions.T)[..., 0], 3.0, atol=1e-5)


def test_what_is_pushed_at_one_token_is_remembered_by_later_ones(parameters, sequence):
    steering = jnp.zeros((BATCH, LENGTH, SITES, WIDTH)).at[:, 10, 1].set(3.0)
    difference = predictions(parameters, sequence, steering)[2] - predictions(parameters, sequence)[2]
    np.testing.assert_array_equal(difference[:, 11:, :2], 0.0)  # the state of block 1 lies before the push
    assert jnp.abs(difference[:, 11:, 2]).max(axis=-1).min() > 0


def test_members_under_vmap_equal_members_by_themselves(sequence):
    population = jax.vmap(POLICY.init)(jax.random.split(jax.random.key(0), 3))
    together = jax.jit(jax.vmap(lambda p: POLICY.heads(p, POLICY.forward(p, sequence).hidden)[0]))(population)
    for member in range(3):
        alone, values, _ = predictions(jax.tree.map(lambda x, member=member: x[member], population), sequence)
        np.testing.assert_allclose(together[member], alone, atol=2e-5)
        np.testing.assert_array_equal(values, 0.0)  # a fresh value head is silent


@pytest.mark.parametrize(("compute", "stored"), [("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_reduced_precision_stores_what_it_says_and_predicts_in_float32(sequence, compute, stored):
    policy = GRU(dataclasses.replace(POLICY.config, compute_dtype=compute, parameter_dtype=stored))
    parameters = policy.init(jax.random.key(3))
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters)} == {jnp.dtype(stored)}
    outputs, cache = policy.decode(parameters, policy.empty_cache(BATCH, LENGTH), sequence, 0)
    logits, values = policy.heads(parameters, outputs.hidden)
    assert outputs.hidden.dtype == jnp.bfloat16
    assert logits.dtype == values.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype(jnp.float32)}
    exact, _, _ = predictions(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters), sequence)
    assert 0 < jnp.abs(logits - exact).mean() < 0.05


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
    with pytest.raises(configs.ConfigError, match=r"invalid choice 'foo' for argument '--policy\.family'") as caught:
        train.parse(["--policy.family", "foo"])
    assert "\n" not in str(caught.value)
    document = configs.to_dict(tiny.CONFIG)
    document["policy"]["family"] = "lstm"
    with pytest.raises(configs.ConfigError, match=r"config\.policy\.family='lstm': not a valid value"):
        configs.from_dict(document)


def test_its_matrices_have_names_in_the_order_of_the_forward_pass(parameters):
    matrices = weights.split(jax.tree.map(lambda x: x[None], parameters))
    block = ("given_norm", "given", "given.bias", "recurrent", "out")
    assert list(matrices) == ["embedding", *(f"blocks.{i}.{role}" for i in range(3) for role in block), "norm", "value"]
    assert [weights.kind(f"blocks.0.{role}") for role in block] == ["norm", "kernel", "bias", "kernel", "kernel"]


@pytest.mark.slow
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
