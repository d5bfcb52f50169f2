"""What every family of policies keeps to: cached decoding is the full forward, nothing sees the future, interventions
are data. A new family joins by a line in `FAMILIES`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import policies
from agents.learning import rl, rollout
from agents.policies import Intervention, PolicyConfig
from envs import tokens
from envs.labyrinth import LabyrinthOptions
from ground.precise import product
from tests.thrift import some

FAMILIES = {
    "transformer": PolicyConfig(width=32, layers=3, heads=2, hidden=48),
    "gru": PolicyConfig(family="gru", width=20, layers=3, heads=2, hidden=24),
    "transformer that looks back": PolicyConfig(width=32, layers=3, heads=2, hidden=48, lookback=2),
    "gru that looks back": PolicyConfig(family="gru", width=24, layers=3, heads=2, hidden=24, lookback=3),
}
BATCH, LENGTH = 3, 29
MORE = 13
"""Tokens for which a cache has room, and that are not read."""


class Family:
    """A policy, parameters as they might be after training, and its compiled functions."""

    def __init__(self, config: PolicyConfig) -> None:
        self.policy = policies.make(config)
        self.sites, self.width = config.layers + 1, config.width
        self.parameters = jax.jit(self._draw)()
        self._predictions = jax.jit(self._predict)
        self.decoded = jax.jit(self._decode)

    def _draw(self):
        # Fresh value heads and norms would hide what they do.
        leaves, structure = jax.tree.flatten(self.policy.init(jax.random.key(3)))
        keys = jax.random.split(jax.random.key(8), len(leaves))
        moved = [x + 0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, moved)

    def _predict(self, parameters, sequence, change):
        outputs = self.policy.forward(parameters, sequence, intervention=change, capture=tuple(range(LENGTH)))
        return (*self.policy.heads(parameters, outputs.hidden), outputs.residual)

    def _decode(self, parameters, cache, chunk, start, change):
        outputs, cache = self.policy.decode(parameters, cache, chunk, start, intervention=change)
        return (*self.policy.heads(parameters, outputs.hidden), cache)

    def change(self, scale, density):
        """Steering of every token and a replacement of some, shared by the sequences or their own."""
        keys = jax.random.split(jax.random.key(9), 3)
        steering = scale * jax.random.normal(keys[0], (self.sites, self.width))
        replacement = jax.random.normal(keys[1], (BATCH, LENGTH, self.sites, self.width))
        where = jax.random.bernoulli(keys[2], density, (1, LENGTH, self.sites, 1))
        return Intervention(steering, None, replacement, where)

    def predictions(self, sequence, steering=None, ablation=None, parameters: Any = None, replacement=0, where=False):
        """Logits, values and the whole stream; every intervention has one shape, so one program serves all tests."""
        steering = jnp.zeros((self.sites, self.width)) if steering is None else steering
        steering = jnp.broadcast_to(steering, (BATCH, LENGTH, self.sites, self.width))
        ablation = jnp.zeros((self.sites, 2, self.width)) if ablation is None else ablation
        parameters = self.parameters if parameters is None else parameters
        replacement = jnp.broadcast_to(jnp.asarray(replacement, jnp.float32), steering.shape)
        where = jnp.broadcast_to(where, (1, LENGTH, self.sites, 1))
        return self._predictions(parameters, sequence, Intervention(steering, ablation, replacement, where))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return Family(FAMILIES[request.param])


@pytest.fixture(scope="module")
def sequence():
    return jax.random.randint(jax.random.key(4), (BATCH, LENGTH), 0, tokens.FIRST)


@pytest.mark.parametrize(
    ("chunks", "longer"),
    some([([1] * LENGTH, MORE), ([7, 7, 7, 7, 1], MORE), ([20, 9], 0), ([LENGTH], 0)], 2),
)
def test_cached_decoding_equals_the_full_forward_at_every_position(family, sequence, chunks, longer):
    for change in (family.change(0.0, 0.0), family.change(1.0, 0.2)):
        logits, values, _ = family.predictions(
            sequence, change.steering, replacement=change.replacement, where=change.where
        )
        cache, start = family.policy.empty_cache(BATCH, LENGTH + longer), 0
        for size in chunks:
            chunk = sequence[:, start : start + size]
            found, value, cache = family.decoded(family.parameters, cache, chunk, start, change)
            np.testing.assert_allclose(found, logits[:, start : start + size], atol=2e-5)
            np.testing.assert_allclose(value, values[:, start : start + size], atol=2e-5)
            start += size


def test_asking_for_some_positions_gives_the_same_there(family, sequence):
    at = np.array([2, 3, 17, LENGTH - 2])
    steering = jax.random.normal(jax.random.key(5), (BATCH, LENGTH, family.sites, family.width))
    policy, change = family.policy, dataclasses.replace(family.change(1.0, 0.2), steering=steering)

    @functools.partial(jax.jit, static_argnames="some")
    def gradient(parameters, some):
        def loss(parameters):
            hidden = policy.forward(parameters, sequence, intervention=change, at=at if some else None).hidden
            hidden = hidden if some else hidden[:, at]
            return jnp.sum(jnp.sin(hidden)), hidden

        return jax.grad(loss, has_aux=True)(parameters)

    (some, hidden), (every, same) = (gradient(family.parameters, some) for some in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), some, every)
    np.testing.assert_allclose(hidden, same, atol=2e-5)
    cache = policy.empty_cache(BATCH, LENGTH)
    decode = jax.jit(lambda at: policy.decode(family.parameters, cache, sequence[:, :7], 0, at=at), static_argnums=0)
    (few, after), (all_, same) = decode((2, 5)), decode(None)
    np.testing.assert_allclose(few.hidden, all_.hidden[:, np.array([2, 5])], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after, same)


def test_no_position_sees_the_future_and_the_last_sees_the_first(family, sequence):
    logits, _, _ = family.predictions(sequence)
    for position in range(LENGTH):
        changed = sequence.at[:, position].set((sequence[:, position] + 1) % tokens.FIRST)
        found, _, _ = family.predictions(changed)
        np.testing.assert_array_equal(found[:, :position], logits[:, :position])
        assert jnp.all(jnp.any(found[:, position] != logits[:, position], axis=-1))
    changed = sequence.at[:, 0].set((sequence[:, 0] + 1) % tokens.FIRST)
    assert jnp.abs(family.predictions(changed)[0][:, -1] - logits[:, -1]).max() > 1e-4


def test_capture_takes_positions_of_each_sequence_and_some_layers(family, sequence):
    def stream(capture, layers=None):
        forward = functools.partial(family.policy.forward, capture=capture, capture_layers=layers)
        return jax.jit(forward)(family.parameters, sequence).residual

    every = stream(tuple(range(LENGTH)))
    assert every.shape == (BATCH, LENGTH, family.sites, family.width)
    np.testing.assert_array_equal(stream((5, 2)), every[:, np.array([5, 2])])
    own = jax.random.randint(jax.random.key(7), (BATCH, 3), 0, LENGTH)
    layers, rows = (family.sites - 1, 0), jnp.arange(BATCH)[:, None]
    np.testing.assert_array_equal(stream(own, layers), every[rows, own][:, :, jnp.array(layers)])
    embedding = np.asarray(family.parameters["embedding"]["embedding"])[sequence] * family.width**0.5
    count = family.policy.config.lookback
    for back in range(1, count + 1):  # the second half of the features is of the tokens before
        part = slice(*(family.width // 2 + np.array([back - 1, back]) * family.width // (2 * count)).tolist())
        embedding[:, back:, part], embedding[:, :back, part] = embedding[:, :-back, part].copy(), 0
    np.testing.assert_allclose(every[:, :, 0], embedding, rtol=1e-6)


def test_changes_of_nothing_are_none_and_what_is_short_leaves_later_tokens_alone(family, sequence):
    some, known = family.change(1.0, 0.4), np.arange(LENGTH) < 12
    for change, told in (
        (Intervention(), {}),
        (family.change(0.0, 0.0), {}),
        (some, {"where": some.where & known[None, :, None, None], "replacement": some.replacement}),
    ):
        short = [None if x is None else x[:, :12] for x in (change.replacement, change.where)]
        outputs = jax.jit(family.policy.forward)(
            family.parameters, sequence, intervention=Intervention(change.steering, None, *short)
        )
        found = family.policy.heads(family.parameters, outputs.hidden)
        wanted = family.predictions(sequence, change.steering if told else None, **told)
        for one, other in zip(found, wanted, strict=False):
            np.testing.assert_allclose(one, other, atol=1e-5)
    with pytest.raises(ValueError, match="a replacement and where it goes, or neither"):
        family.policy.forward(family.parameters, sequence, intervention=Intervention(replacement=some.replacement))


def test_steering_and_ablation_change_their_layer_as_told_and_only_what_follows(family, sequence):
    logits, _, plain = family.predictions(sequence)
    directions = jnp.linalg.qr(jax.random.normal(jax.random.key(5), (family.width, 2)))[0].T
    for site in range(family.sites):
        steering = jnp.zeros((BATCH, LENGTH, family.sites, family.width)).at[:, 10:, site].set(3 * directions[0])
        *_, pushed = family.predictions(sequence, steering)
        difference = pushed - plain
        np.testing.assert_array_equal(difference[:, :10], 0.0)
        np.testing.assert_array_equal(difference[:, :, :site], 0.0)
        np.testing.assert_allclose(
            difference[:, 10:, site], jnp.broadcast_to(3 * directions[0], (BATCH, 19, family.width)), atol=1e-5
        )
        last = site == family.sites - 1
        assert last or jnp.abs(difference[:, 10:, site + 1] - difference[:, 10:, site]).max() > 1e-3

        ablation = jnp.zeros((family.sites, 2, family.width)).at[site].set(directions)
        said, _, without = family.predictions(sequence, None, ablation)
        expected = plain[:, :, site] - product("bsw,kw,kv->bsv", plain[:, :, site], directions, directions)
        np.testing.assert_allclose(without[:, :, site], expected, atol=1e-5)
        np.testing.assert_allclose(product("bsw,kw->bsk", without[:, :, site], directions), 0.0, atol=1e-5)
        assert jnp.abs(said - logits).max() > 1e-3
        *_, both = family.predictions(sequence, steering, ablation)
        np.testing.assert_allclose(product("bsw,kw->bsk", both[:, 10:, site], directions)[..., 0], 3.0, atol=1e-5)


def test_a_replacement_is_what_is_read_from_there_on(family, sequence):
    _, _, plain = family.predictions(sequence)
    wanted, _, source = family.predictions(sequence[:, ::-1])
    for site in range(family.sites):
        found, _, stream = family.predictions(
            sequence, replacement=source, where=(np.arange(family.sites) == site)[:, None]
        )
        np.testing.assert_allclose(found, wanted, atol=2e-5)
        np.testing.assert_array_equal(stream[:, :, :site], plain[:, :, :site])
        np.testing.assert_array_equal(stream[:, :, site], source[:, :, site])
    where = np.random.default_rng(3).random((1, LENGTH, family.sites, 1)) < 0.2
    where[:, :10], where[:, 10, 0] = False, True
    directions = jnp.zeros((family.sites, 2, family.width)).at[:, 0, 0].set(1.0).at[:, 1, 1].set(1.0)
    found, _, stream = family.predictions(sequence, 2 * source, directions, replacement=source, where=where)
    there = np.broadcast_to(where, source.shape)
    np.testing.assert_array_equal(stream[there], source[there])  # neither ablated nor steered
    without, _, steered = family.predictions(sequence, 2 * source, directions)
    np.testing.assert_array_equal(found[:, :10], without[:, :10])
    assert jnp.abs(found[:, 10:] - without[:, 10:]).max(axis=(0, 2)).min() > 1e-4
    np.testing.assert_allclose(steered[:, :, 0, :2], 2 * source[:, :, 0, :2], atol=1e-5)


@pytest.mark.slow
def test_play_is_what_reading_its_episodes_says_under_every_change(family, key):
    world, params = LabyrinthOptions(size=3, turns=3, plan_length=3).make()
    length, noise = world.episode_length(), rollout.gumbel(8)
    keys = jax.random.split(key, 4)
    shape = (8, length, family.sites, family.width)
    steering, replacement = (jax.random.normal(one, shape) for one in keys[:2])
    where = jax.random.bernoulli(keys[2], 0.3, (1, length, family.sites, 1))
    change = Intervention(steering, None, replacement, where)

    @jax.jit
    def play(change):
        driver = rollout.policy_driver(family.policy, family.parameters, world, intervention=change)
        mazes = jax.random.split(key, 8)
        episodes, scores, _ = rollout.play(
            world, params, mazes, keys[3], driver, noise, observe=lambda states, scores: scores
        )
        return (
            episodes,
            scores,
            rl.read_decisions(family.policy, family.parameters, world, episodes.tokens, intervention=change),
        )

    episodes, scores, read = play(change)
    assert world.opening_length > 1
    assert episodes.written[:, 1].any()
    np.testing.assert_allclose(jnp.moveaxis(scores, 0, 1), read.actions, atol=3e-5)
    for slot in range(world.opening_length):
        drawn = noise(jax.random.fold_in(jax.random.fold_in(keys[3], world.turns), slot), len(world.sayings))
        likely = read.openings[:, slot] + drawn
        said = world.said(world.opening(episodes.tokens))[:, slot, None]
        own = jnp.take_along_axis(likely, said, axis=1)[:, 0]
        assert jnp.where(episodes.written[:, slot], own >= likely.max(axis=1) - 1e-4, True).all()
    silent, _, _ = play(jax.tree.map(jnp.zeros_like, change))
    assert (silent.tokens != episodes.tokens).any()


def test_what_is_pushed_at_one_token_reaches_itself_and_later_ones(family, sequence):
    steering = jnp.zeros((BATCH, LENGTH, family.sites, family.width)).at[:, 10, 1].set(3.0)
    (found, _, pushed), (logits, _, plain) = family.predictions(sequence, steering), family.predictions(sequence)
    np.testing.assert_array_equal(found[:, :10], logits[:, :10])
    assert jnp.abs(found[:, 10] - logits[:, 10]).min() > 0
    difference = pushed - plain
    np.testing.assert_array_equal(difference[:, :10], 0.0)
    np.testing.assert_array_equal(difference[:, 11:, :2], 0.0)  # what block 1 keeps lies before the push
    assert jnp.abs(difference[:, 10:, 2]).max(axis=-1).min() > 0


def test_members_under_vmap_equal_members_by_themselves(family, sequence):
    population = jax.jit(jax.vmap(family.policy.init))(jax.random.split(jax.random.key(0), 4))
    each = jax.vmap(lambda p: family.policy.heads(p, family.policy.forward(p, sequence).hidden)[0])
    together = jax.jit(each)(population)
    for member in range(4):
        alone = jax.tree.map(lambda x, member=member: x[member], population)
        logits, values, _ = family.predictions(sequence, parameters=alone)
        np.testing.assert_allclose(together[member], logits, atol=2e-5)
        np.testing.assert_array_equal(values, 0.0)  # a fresh value head is silent
        assert logits.dtype == values.dtype == jnp.float32


@pytest.mark.parametrize(("compute", "stored"), some([("bfloat16", "bfloat16"), ("bfloat16", "float32")]))
def test_reduced_precision_stores_what_it_says_and_predicts_in_float32(family, sequence, compute, stored):
    policy = policies.make(dataclasses.replace(family.policy.config, compute_dtype=compute, parameter_dtype=stored))
    parameters = jax.jit(policy.init)(jax.random.key(3))
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters)} == {jnp.dtype(stored)}
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters)
    exact, _, _ = family.predictions(sequence, parameters=whole)

    @jax.jit
    def both(parameters):
        decoded, _ = policy.decode(parameters, policy.empty_cache(BATCH, LENGTH), sequence, 0)
        hidden = (policy.forward(parameters, sequence).hidden, decoded.hidden)
        return [(x, *policy.heads(parameters, x)) for x in hidden]

    for hidden, logits, values in both(parameters):
        assert hidden.dtype == jnp.bfloat16
        assert logits.dtype == values.dtype == jnp.float32
        assert 0 < jnp.abs(logits - exact).mean() < 0.05


def test_reading_from_the_first_token_forgets_what_the_cache_held(family, sequence):
    push, empty = family.change(0.0, 0.0), family.policy.empty_cache(BATCH, LENGTH + MORE)
    fresh, _, _ = family.decoded(family.parameters, empty, sequence[:, :7], 0, push)
    _, _, used = family.decoded(family.parameters, empty, sequence[:, 7:14], 0, push)
    np.testing.assert_array_equal(family.decoded(family.parameters, used, sequence[:, :7], 0, push)[0], fresh)
    assert jnp.abs(family.decoded(family.parameters, used, sequence[:, :7], 7, push)[0] - fresh).max() > 1e-2


@pytest.mark.parametrize(
    "change", [{"width": 30}, {"layers": 0}, {"heads": 0}, {"hidden": 0}, {"lookback": -1}, {"lookback": 3}]
)
def test_impossible_sizes_are_refused(change):
    with pytest.raises(ValueError, match=f"policy.{next(iter(change))}="):
        PolicyConfig(**{"width": 32, "heads": 2} | change)
