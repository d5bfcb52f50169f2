"""Goal tracking and the narrator, beside loops over the tokens that were played."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from agents.learning import demonstrations
from agents.policies import PolicyConfig
from agents.policies.transformer import Transformer
from analysis import concepts, directions, tracking
from analysis.measure import mapped
from analysis.measures.tracking import track
from envs import maze, tokens

EPISODES = 32
POLICY = Transformer(PolicyConfig(width=16, layers=1, heads=2, hidden=16))
WORLD = maze.EmojiMaze(size=11, turns=4)
TILE_MAP = (tokens.TILE_MAP[2], tokens.TILE_MAP[0], tokens.TILE_MAP[1], *tokens.TILE_MAP[3:])
PARAMS = dataclasses.replace(
    WORLD.default_params, tile_map=jnp.array(TILE_MAP, jnp.int32), wind_probability=jnp.float32(0.4)
)
STREAM = jax.jit(lambda p, x: POLICY.forward(p, x, capture=np.arange(x.shape[1])).residual)
BY_D, BY_AREA = (
    jax.jit(functools.partial(tracking.track, measure=measured)) for measured in (concepts.cohens_d, concepts.auroc)
)
PLAY = jax.jit(lambda p, params, key: tracking.play(POLICY, p, WORLD, params, key, EPISODES))
PLAY_OF = jax.jit(lambda p, params, key, player: tracking.play(POLICY, p, WORLD, params, key, EPISODES, player))


@pytest.fixture(scope="module")
def parameters():
    """A policy whose norm has a scale and whose value head is not zero."""
    fresh = jax.jit(POLICY.init)(jax.random.key(7))
    rng = np.random.default_rng(0)
    norm = {"scale": jnp.asarray(rng.uniform(0.5, 2, 16), jnp.float32)}
    return fresh | {"norm": norm, "value": {"kernel": jnp.asarray(rng.normal(size=(16, 1)), jnp.float32)}}


@pytest.fixture(scope="module")
def seen(parameters):
    return PLAY(parameters, PARAMS, jax.random.key(3))


def told_by(seen, along):
    """d and AUROC of directions."""
    return BY_D(seen, jnp.asarray(along)), BY_AREA(seen, jnp.asarray(along))


def textbook_d(own, rest):
    squares = ((own - own.mean()) ** 2).sum() + ((rest - rest.mean()) ** 2).sum()
    return (own.mean() - rest.mean()) / np.sqrt(squares / (len(own) + len(rest) - 2))


def textbook_area(own, rest):
    return stats.mannwhitneyu(own, rest).statistic / (len(own) * len(rest))


def outcomes(landed, rewards):
    """For each outcome the (episode, turn) pairs of both groups, by loops over whole tenths of pay."""
    tenths = np.round(np.asarray(rewards, np.float64) * 10).astype(int).tolist()
    episodes, turns = np.shape(landed)
    every = [(n, t) for n in range(episodes) for t in range(turns)]
    tile = tuple([at for at in every if landed[at] == role] for role in (tokens.GOLD, tokens.MOLD))
    more, less = [], []
    for t in range(turns - 1):
        rest = [sum(tenths[n][t + 1 :]) for n in range(episodes)]
        ordered = sorted(rest)
        twice_median = ordered[(episodes - 1) // 2] + ordered[episodes // 2]
        more += [(n, t) for n in range(episodes) if 2 * rest[n] > twice_median]
        less += [(n, t) for n in range(episodes) if 2 * rest[n] < twice_median]
    return tile, (more, less), tile


def within_moves(scores, moves, groups):
    """Scores less the mean, over both groups, of those with the same move."""
    result = scores.copy()
    for move in range(4):
        same = [scores[at] for group in groups for at in group if moves[at] == move]
        result[moves == move] -= np.mean(same) if same else 0.0
    return result


def check_tracking(seen, along, found):
    """Every d and AUROC equals the textbook's on the groups of the loop."""
    groups = outcomes(np.asarray(seen.landed), seen.rewards)
    stream = np.asarray(seen.stream, np.float64)
    d, area = found
    for k, s, o, layer in np.ndindex(d.shape):
        scores = stream[s, :, :, layer] @ np.asarray(along, np.float64)[k, layer]
        if tracking.OUTCOMES[o] == "next_same_move":
            scores = within_moves(scores, np.asarray(seen.moves), groups[o])
        own, rest = (np.array([scores[at] for at in group]) for group in groups[o])
        np.testing.assert_allclose(d[k, s, o, layer], textbook_d(own, rest), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(area[k, s, o, layer], textbook_area(own, rest), atol=2e-4)


def test_play_says_what_the_tokens_say(parameters, seen):
    spoken = np.asarray(seen.tokens)
    turns = spoken[:, 1:].reshape(EPISODES, WORLD.turns, -1)
    moves = turns[..., -1] - tokens.MOVES[0]
    for n, t in np.ndindex(moves.shape):
        assert seen.moves[n, t] == moves[n, t]
        assert seen.landed[n, t] == TILE_MAP.index(turns[n, t, 2 + moves[n, t]])
    # Pay of the tile and, where the next view tells of wind, perhaps of one more.
    pay = np.array([0, 20, -10])[np.asarray(seen.landed)] - 0.1
    calm = turns[:, 1:, 1] == tokens.CALM
    rewards = np.asarray(seen.rewards)
    np.testing.assert_allclose(rewards[:, :-1][calm], pay[:, :-1][calm], atol=1e-5)
    assert 0.4 < calm.mean() < 0.8
    whole = np.asarray(STREAM(parameters, seen.tokens))
    at = WORLD.action_positions()
    assert seen.stream.shape == (2, EPISODES, WORLD.turns, 1, 16)
    for site, offset in enumerate((-1, 0)):  # the last tile of the view, then the move
        np.testing.assert_allclose(seen.stream[site], whole[:, at + offset, 1:], rtol=1e-3, atol=1e-4)
    assert np.isin(spoken[:, at], tokens.MOVES).all()


def test_a_policy_that_reads_the_view_is_played_by_its_own_logits(parameters, seen):
    logits = jax.jit(lambda p, x: POLICY.heads(p, POLICY.forward(p, x).hidden)[0])(parameters, seen.tokens)
    at = WORLD.action_positions()
    scores = np.asarray(logits)[:, at - 1][..., list(tokens.MOVES)].astype(np.float64)
    chances = np.exp(scores - scores.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    moves = np.asarray(seen.tokens)[:, at] - tokens.MOVES[0]
    counts = np.bincount(moves.ravel(), minlength=4)
    error = np.sqrt((chances * (1 - chances)).sum((0, 1)))
    np.testing.assert_array_less(np.abs(counts - chances.sum((0, 1))), 4 * error)


def synthetic(stream, landed, moves, rewards):
    """A `Play` whose tokens nobody reads."""
    return tracking.Play(
        stream=jnp.asarray(stream, jnp.float32),
        landed=jnp.asarray(landed, jnp.int32),
        moves=jnp.asarray(moves, jnp.int32),
        rewards=jnp.asarray(rewards, jnp.float32),
        tokens=jnp.zeros((len(landed), 1), jnp.int32),
    )


def test_a_planted_direction_foretells_the_tile_at_its_site_and_layer():
    rng = np.random.default_rng(1)
    episodes, turns, layers, width = 60, 5, 2, 12
    landed, moves = rng.integers(0, 3, (episodes, turns)), rng.integers(0, 4, (episodes, turns))
    along = np.linalg.qr(rng.normal(size=(layers, width, 3)))[0].transpose(2, 0, 1).astype(np.float32)
    stream = rng.normal(size=(2, episodes, turns, layers, width))
    strength = np.array([0.0, 1.0, -1.0])[landed][..., None]
    stream[1, :, :, 1] += 2 * strength * along[0, 1]
    play = synthetic(stream, landed, moves, np.array([0, 20, -10])[landed] - 0.1)
    found = told_by(play, along)
    assert found[0].shape == found[1].shape == (3, len(tracking.SITES), len(tracking.OUTCOMES), layers)
    check_tracking(play, along, found)
    d, area = (values[0, 1, :, 1] for values in found)
    assert (d[jnp.array([0, 2])] > 2.5).all()
    assert (area[jnp.array([0, 2])] > 0.95).all()
    others = np.array(found[0])
    others[0, 1, [0, 2], 1] = 0
    assert np.abs(others).max() < 1


def test_what_a_move_itself_says_counts_only_where_moves_may_differ():
    rng = np.random.default_rng(6)
    moves = rng.integers(0, 3, (80, 6))  # one move is never made
    landed = np.where(rng.random(moves.shape) < 0.7, np.array([1, 2, 0])[moves], rng.integers(0, 3, moves.shape))
    stream = np.array([5.0, -5, 1])[moves] + 0.1 * rng.normal(size=moves.shape)
    play = synthetic(np.stack([stream, stream])[..., None, None], landed, moves, landed)
    found = told_by(play, np.ones((1, 1, 1)))
    check_tracking(play, np.ones((1, 1, 1)), found)
    assert found[0][0, 0, 0, 0] > 1.5
    assert abs(found[0][0, 0, 2, 0]) < 0.3


def test_ties_with_the_median_are_left_out_whatever_was_paid_before():
    # Sums of tenths in another order differ in their last bits; those would tell of the reward of this very turn.
    rng = np.random.default_rng(2)
    pay = np.array([-0.1, -0.1, 19.9, -10.1, 9.9, -20.1])[rng.integers(0, 6, (200, 15))]
    landed, moves = (rng.integers(0, high, pay.shape) for high in (3, 4))
    stream = (pay + 0.01 * rng.normal(size=(2, 200, 15)))[..., None, None]
    _, (more, less), _ = outcomes(landed, pay)
    assert 200 * 14 - len(more) - len(less) > 200  # the example has many ties
    play = synthetic(stream, landed, moves, pay)
    check_tracking(play, np.ones((1, 1, 1)), told_by(play, np.ones((1, 1, 1))))


def test_one_turn_has_no_rest():
    rng = np.random.default_rng(3)
    landed = rng.integers(0, 3, (40, 1))
    play = synthetic(rng.normal(size=(2, 40, 1, 1, 3)), landed, landed, np.zeros((40, 1)))
    for values in told_by(play, np.ones((1, 1, 3))):
        np.testing.assert_array_equal(np.isnan(values[0, :, :, 0]), [[False, True, False]] * 2)


def test_the_narrator_is_read_at_the_word_and_before_it(parameters):
    config = demonstrations.Demonstrations(tile_maps="unseen", narration=0.0)
    spoken = tracking.narrated(WORLD, PARAMS, config, jax.random.key(9), EPISODES)
    narrator = jax.jit(lambda p, told: tracking.narrator(POLICY, p, WORLD, told))(parameters, spoken)
    whole = np.asarray(STREAM(parameters, spoken), np.float64)
    spoken = np.asarray(spoken)
    words = {tokens.GOOD: [], tokens.NEUTRAL: [], tokens.BAD: []}
    for n, t in np.ndindex(EPISODES, WORLD.turns - 1):
        move = WORLD.action_positions()[t]
        assert spoken[n, move] in tokens.MOVES
        words[spoken[n, move + 1]].append((whole[n, move, 1:], whole[n, move + 1, 1:]))
    assert min(map(len, words.values())) > 3
    foretold, heard = np.mean(words[tokens.GOOD], axis=0) - np.mean(words[tokens.BAD], axis=0)
    np.testing.assert_allclose(narrator[0], heard, atol=1e-3)
    np.testing.assert_allclose(narrator[1], foretold, atol=1e-3)
    readout = tracking.unembedding(parameters)
    np.testing.assert_allclose(narrator[2], readout[tokens.GOOD] - readout[tokens.BAD], atol=1e-6)
    views = spoken[:, 1:].reshape(EPISODES, WORLD.turns, -1)[:, :, 2:6]
    assert np.isin(views, tokens.UNSEEN_TILES).all()  # the emoji of pretraining


def test_logits_and_values_are_read_off_the_stream(parameters):
    x = jnp.asarray(np.random.default_rng(4).integers(0, tokens.FIRST, (5, 12)), jnp.int32)
    outputs = jax.jit(lambda p: POLICY.forward(p, x, capture=np.arange(12), capture_layers=(1,)))(parameters)
    logits, value = POLICY.heads(parameters, outputs.hidden)
    stream = np.asarray(outputs.residual, np.float64)[:, :, 0]
    length = np.sqrt((stream**2).mean(axis=-1) + 1e-6)
    readout = tracking.unembedding(parameters)
    said = np.asarray(readout[tokens.GOOD] - readout[tokens.BAD], np.float64)
    difference = np.asarray(logits[..., tokens.GOOD] - logits[..., tokens.BAD])
    np.testing.assert_allclose(difference, stream @ said / length, atol=1e-3)
    np.testing.assert_allclose(logits, stream @ np.asarray(readout, np.float64).T / length[..., None], atol=1e-3)
    along = np.asarray(tracking.value_readout(parameters), np.float64)
    np.testing.assert_allclose(value, stream @ along / length, atol=1e-3)


@pytest.mark.slow
def test_a_population_is_its_members(parameters, seen):
    other = jax.tree.map(lambda x: x[::-1] * jnp.float32(1.1), parameters)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), other, parameters)
    maps = jnp.array([tokens.TILE_MAP, TILE_MAP], jnp.int32)
    params = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS).replace(tile_map=maps)
    vectors, before = jnp.asarray(np.random.default_rng(5).normal(size=(2, 2, 3, 1, 16)), jnp.float32)
    key = jax.random.key(12)

    def told(*members):
        return mapped(track, POLICY, WORLD, (("episodes", EPISODES),), members, (key,))

    d, auroc, controls, landed = told(both, both, params, vectors, before)
    play_key, random_key = jax.random.split(key)
    alone = PLAY(parameters, PARAMS, play_key)
    np.testing.assert_allclose(landed[1], [np.mean(alone.landed == role) for role in range(3)], rtol=1e-6)
    named = jax.jit(directions.of_member)(parameters, vectors[1], before[1], maps[1], random_key)
    assert set(named) == {*directions.NAMES, *directions.CONTROLS}
    for name in ("axis", "path", "axis without emoji"):
        direct, at = told_by(alone, named[name]), directions.NAMES.index(name)
        np.testing.assert_allclose(d[1, at], direct[0][0], rtol=1e-2, atol=1e-3, err_msg=name)
        np.testing.assert_allclose(auroc[1, at], direct[1][0], atol=5e-3, err_msg=name)
    for name, part in zip(directions.CONTROLS, np.split(np.asarray(controls[1]), 2), strict=True):
        np.testing.assert_allclose(part, BY_D(alone, named[name]), rtol=1e-2, atol=1e-3, err_msg=name)
    # The same mazes for all: members who are one member play the same, whatever their place.
    turned, maps_turned = jax.tree.map(lambda x: x[::-1], both), params.replace(tile_map=maps[::-1])
    same = told(turned, turned, maps_turned, vectors[::-1], before[::-1])
    np.testing.assert_allclose(same[0][0], d[1], rtol=1e-3, atol=1e-4)
    # Another player: the same stream of other episodes.
    watched = told(both, turned, params, vectors, before)
    elsewhere = PLAY_OF(parameters, PARAMS, play_key, other)
    direct, at = BY_D(elsewhere, named["axis"]), directions.NAMES.index("axis")
    np.testing.assert_allclose(watched[0][1, at], direct[0], rtol=1e-2, atol=1e-3)
