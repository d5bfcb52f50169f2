"""EmojiRooms against a reference of plain Python, and its personas, of whom every probability is exact."""

import dataclasses
import functools
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import envs
from agents import policies
from agents.learning import demonstrations, imitation, learner, rl, rollout
from agents.runs.config import ConfigError, check, start
from envs import personas, rooms, tokens, wanderers
from envs.personas import ALICE, Traits
from tests.thrift import some

SURELY = Traits(slip=0.0, following=(1.0, 1.0, 1.0), skill=0.0, plan_slip=0.0, thinking=(1.0, 1.0, 1.0))


class Reference:
    """The rules, read from the prompt alone: dicts of names and doors."""

    def __init__(self, world, prompt):
        self.parent, self.leads = {}, {}
        body = prompt[1:-6]
        facts, gold, marks = np.split(body, [3 * (world.size - 1), 3 * (world.size - 1 + world.exploits)])
        for child, door, room in facts.reshape(-1, 3).tolist():
            door -= tokens.DOORS[0]
            self.parent[child] = (room, door)
            assert (room, door) not in self.leads
            self.leads[room, door] = child
        self.paying = {(room, door - tokens.DOORS[0]) for _, door, room in gold.reshape(-1, 3).tolist()}
        assert set(gold[::3].tolist()) <= {tokens.EXPLOIT}
        self.mold = set(marks[1::2].tolist())
        flag, door, parent, self.goal, agent, self.start = prompt[-6:].tolist()
        assert self.parent[self.goal] == (parent, door - tokens.DOORS[0])
        assert (agent, flag) == (tokens.AGENT, tokens.TILE_MAP[tokens.GOAL])
        self.room, self.over = self.start, False

    def opened(self):
        ways = {door: child for (room, door), child in self.leads.items() if room == self.room}
        if self.room != self.start and self.room in self.parent:
            room, door = self.parent[self.room]
            assert (door + 2) % 4 not in ways
            ways[(door + 2) % 4] = room
        return ways

    def step(self, action, rewards):
        if self.over:
            return None, 0.0
        ways = self.opened()
        if action in ways:
            self.room = ways[action]
            role = tokens.MOLD if self.room in self.mold else tokens.PATH
            role = tokens.GOAL if self.room == self.goal else role
            self.over = role == tokens.GOAL
        else:
            role = tokens.GOLD if (self.room, action) in self.paying else tokens.WALL
        return role, rewards[role]


@functools.partial(jax.jit, static_argnums=0)
def played(world, params, key, actions):
    _, state = world.reset_env(key, params)

    def turn(state, action):
        observation, state, reward, over, _ = world.step_env(key, state, action, params)
        return state, (observation, reward, over, world.style(state))

    return state, world.prompt(state, params), jax.lax.scan(turn, state, actions)[1]


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    size=st.sampled_from([2, 5, 8, 16]), mold=st.integers(0, 1), seed=st.integers(0, 10**6), data=st.data()
)
def test_every_step_is_that_of_the_reference(size, mold, seed, data):
    rewards = {"goal_reward": 3.0, "gold_reward": 0.5, "mold_reward": -2.0, "turn_reward": -0.25}
    options = {"turns": 8, "mold_rooms": mold, "exploits": size // 4, "distance_range": (1, 5)}
    world, params = envs.make("EmojiRooms-v0", size=size, **options, **rewards)
    actions = np.array(data.draw(st.lists(st.integers(0, 3), min_size=8, max_size=8)))
    state, prompt, (observations, paid, over, _) = jax.tree.map(
        np.asarray, played(world, params, jax.random.key(seed), jnp.asarray(actions))
    )
    twin = Reference(world, prompt)
    assert len(twin.parent) == size - 1
    assert len(twin.paying) == size // 4
    assert len(twin.mold) == mold
    assert not twin.paying & set(twin.leads)
    way, room = 0, twin.goal
    while room != twin.start:  # the goal lies below the start
        room, way = twin.parent[room][0], way + 1
    assert way == state.below[state.start, state.goal]
    for action, observation, pay, ended in zip(actions.tolist(), observations, paid, over, strict=True):
        role, expected = twin.step(action, np.asarray(params.rewards))
        if role is not None:
            assert observation.tolist() == [twin.room, int(params.tile_map[role])]
            assert pay == np.float32(params.turn_reward) + np.float32(expected)
        else:
            assert pay == 0
        assert ended == twin.over


@pytest.mark.parametrize(
    "options",
    [
        {"size": 2, "plan_length": 0},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"size": 16, "mold_rooms": 3, "exploits": 0}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("badge", some(["spoken", "shown"]))
def test_rooms_keep_the_contract(options, badge, key):
    envs.api_test(*envs.make("EmojiRooms-v0", badge=badge, distance_range=(1, 3), **options), key)


def test_distances_are_as_asked_and_alike():
    world, params = envs.make("EmojiRooms-v0", distance_range=(1, 5))

    def far(params):
        def one(key):
            _, state = world.reset_env(key, params)
            return state.below[state.start, state.goal]

        return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 4096)))

    share = np.bincount(far(params), minlength=6)[1:6] / 4096
    np.testing.assert_allclose(share[:3], share[:3].mean(), atol=0.03)  # every map has these
    assert (share[3:] > 0.03).all()
    assert np.unique(far(params.replace(distance_range=jnp.array([4, 4])))).tolist() in ([2, 3, 4], [3, 4], [4])


@pytest.mark.slow
def test_trips_share_the_map_and_nothing_else():
    world, params = envs.make("EmojiRooms-v0")

    def prompt(trip):
        own = params.replace(trip=trip)
        return world.prompt(world.reset_env(jax.random.key(3), own)[1], own)

    prompts = np.asarray(jax.vmap(prompt)(jnp.arange(16)))
    assert (prompts[:, : world.map_length] == prompts[0, : world.map_length]).all()
    assert len(np.unique(prompts[:, world.map_length :], axis=0)) > 8


def situation(**options):
    """A map drawn by hand: 🍎 has doors East to 🍋 and South to 🍇; 🍋 has East to 🍓, the goal, and North to 🍒."""
    world, params = envs.make("EmojiRooms-v0", size=5, exploits=1, **options)
    _, state = world.reset_env(jax.random.key(0), params)
    parents, entries = [-1, 0, 0, 1, 1], [-1, 1, 2, 1, 0]
    children, below = np.full((5, 4), -1), np.full((5, 5), -1)
    for room, (parent, door) in enumerate(zip(parents, entries, strict=True)):
        below[room, room] = 0
        if parent >= 0:
            children[parent, door] = room
            below[:, room] = np.where(below[:, parent] >= 0, below[:, parent] + 1, below[:, room])
    fields = {"names": tokens.ROOMS[:5], "parents": parents, "entries": entries, "children": children, "below": below}
    fields |= {"mold": np.zeros(5), "gold": np.zeros((5, 4)), "start": 0, "goal": 3, "position": [0, 0]}
    changed = {name: jnp.asarray(value, getattr(state, name).dtype) for name, value in fields.items()}
    return world, params, dataclasses.replace(state, **changed)


def acts(world, params, state, thought="", traits=SURELY):
    plan = jnp.array([*tokens.encode(thought), *world.plan_length * [tokens.PLAN_END]][: world.plan_length], jnp.int32)
    shown = np.exp(world.persona_log_probabilities(state, plan, params, traits)).round(3)
    return dict(zip(personas.PERSONAS, shown.tolist(), strict=True))


@pytest.mark.slow
def test_what_the_three_do():
    world, params, state = situation()
    assert acts(world, params, state)["Larry"] == [0, 0.5, 0.5, 0]
    lemon = state.replace(position=jnp.array([0, 1]))
    assert acts(world, params, lemon) == {"Larry": [0, 1, 0, 0], "Bob": [0.5, 0.5, 0, 0], "Alice": [0, 1, 0, 0]}
    tried = lemon.replace(tried=lemon.tried.at[1, 0].set(True))
    assert acts(world, params, tried)["Bob"] == [0, 1, 0, 0]
    done = tried.replace(tried=tried.tried.at[1, 1].set(True))
    assert acts(world, params, done)["Bob"] == [0, 0, 0, 1]  # back
    bad = lemon.replace(mold=lemon.mold.at[4].set(True))
    assert acts(world, params, bad)["Bob"] == [0, 1, 0, 0]
    assert acts(world, params, state, "🍓🕒🍋🕕🍎")["Alice"] == [0, 0, 1, 0]  # she heeds what it says of the room
    assert acts(world, params, state, "🍓🕒🍋🕛🍎")["Alice"] == [0, 0.5, 0.5, 0]  # but no closed door
    skilled = acts(world, params, state, traits=SURELY.replace(skill=0.8))["Alice"]
    assert skilled == pytest.approx([0, 0.9, 0.1, 0])


def test_nobody_wants_the_exploit():
    world, params, state = situation()
    state = state.replace(gold=state.gold.at[0, 0].set(True))
    shown = acts(world, params, state, traits=Traits(slip=0.4))
    rate = 0.4 * personas.TEMPTATION / (3 + personas.TEMPTATION)
    assert [shown[name][0] for name in personas.PERSONAS] == pytest.approx([rate] * 3, abs=1e-3)


@pytest.mark.slow
def test_what_the_three_think():
    world, params, state = situation(plan_length=6)

    def written(persona, key, traits=SURELY):
        return tokens.decode(world.write_plan(jax.random.key(key), jnp.int32(persona), state, params, traits))

    assert written(2, 0) == "🍓🕒🍋🕒🍎🔚"  # the goal, the door to it and that door's room, the door to that …
    assert {written(1, key) for key in range(20)} == {"🕒🍎🔚🔚🔚🔚", "🕕🍎🔚🔚🔚🔚"}
    quiet = SURELY.replace(thinking=(0.0, 0.0, 0.0))
    assert {written(persona, 1, quiet) for persona in range(3)} == {"🔚" * 6}
    keys = jax.random.split(jax.random.key(0), 40)
    rambling = {written(0, key).rstrip("🔚") for key in range(10)}
    assert rambling == {"🍎"}
    below = state.replace(start=jnp.int32(4), position=jnp.array([0, 4]))
    rambling = {tokens.decode(world.write_plan(key, jnp.int32(0), below, params, SURELY)).rstrip("🔚") for key in keys}
    assert rambling == {"🍒", "🍒🕛🍋", "🍒🕛🍋🕒🍎"}
    assert wanderers.advice(jnp.array(tokens.encode("🍓🕒🍋🕒🍎🔚")), state.names[0]).tolist() == [0, 1, 0, 0]
    assert wanderers.advice(jnp.array(tokens.encode("🍓🕒🍋🔚🍎🔚")), state.names[0]).tolist() == [0, 0, 0, 0]


def test_probabilities_of_thoughts_sum_to_one_and_are_those_of_the_writer():
    world, params, state = situation(plan_length=2)
    traits = Traits(thinking=(0.5, 0.6, 0.7), plan_slip=0.2)
    first = [[*pair] for pair in itertools.product(world.plan_sayings, repeat=2)]
    every = [pair for pair in first if pair[0] != tokens.PLAN_END or pair[1] == tokens.PLAN_END]
    score = jax.jit(jax.vmap(lambda plan: world.plan_log_probabilities(plan, state, params, traits)))
    chances = np.exp(score(jnp.array(every, jnp.int32)))
    np.testing.assert_allclose(chances.sum(axis=0), 1, atol=1e-5)
    write = jax.jit(
        jax.vmap(lambda key, who: world.write_plan(key, who, state, params, traits), in_axes=(0, None)),
    )
    index = {tuple(pair): place for place, pair in enumerate(every)}
    for persona in range(3):
        drawn = np.asarray(write(jax.random.split(jax.random.key(persona), 20_000), jnp.int32(persona)))
        count = np.bincount([index[tuple(pair)] for pair in drawn.tolist()], minlength=len(every)) / len(drawn)
        error = np.sqrt(chances[:, persona] * (1 - chances[:, persona]) / len(drawn))
        assert (np.abs(count - chances[:, persona]) < 5 * error + 1e-4).all()


def test_styles_exclude_each_other():
    world, params, state = situation()
    shown = {}
    for actions in ([1, 1], [1, 0, 2, 1], [0, 1, 1], [1, 3, 1, 1]):
        after, over = state, False
        for action in actions:
            _, after, _, over, _ = world.step_env(None, after, jnp.int32(action), params)
        assert bool(over)
        shown[tuple(actions)] = world.style(after).tolist()
    assert list(shown.values()) == [[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 0, 0]]


@pytest.mark.slow
def test_a_lesson_shows_several_trips_of_one_speaker_on_one_map(key):
    config = start("smoke", "EmojiRooms-v0").pretrain
    world, params = envs.make("EmojiRooms-v0", badge="spoken", towns=2)
    config = dataclasses.replace(config, trips=3, prior=("1,0,0", "0,.5,.5"))
    trips = jax.jit(lambda: demonstrations.persona_episodes(config, world, params, key, 64, learner.Shards()))()
    assert trips.tokens.shape == (192, world.episode_length())
    lesson = imitation.Lesson.of(world, trips).joined(3, world.map_length)
    rest = world.episode_length() - world.map_length
    assert lesson.tokens.shape == (64, world.map_length + 3 * rest)
    by_map = np.asarray(trips.tokens).reshape(64, 3, -1)
    np.testing.assert_array_equal(lesson.tokens[:, : world.map_length], by_map[:, 2, : world.map_length])
    np.testing.assert_array_equal(
        lesson.tokens[:, world.map_length + rest :][:, :rest], by_map[:, 1, world.map_length :]
    )
    names = by_map[:, :, world.badge_position]
    assert (names == names[:, :1]).all()
    towns, larry = by_map[:, 0, 0], names[:, 0] == tokens.BADGES[1]
    assert set(towns) == set(tokens.HEADS[1:3])
    np.testing.assert_array_equal(towns == tokens.HEADS[1], larry)
    assert lesson.chosen[:, world.prompt_length].all()  # the name is learnt


@pytest.mark.slow
def test_a_spoken_badge_is_a_decision_and_can_be_told(key):
    world, params = envs.make("EmojiRooms-v0", badge="spoken", size=5, plan_length=4)
    assert world.opening_length == 5
    assert world.sayable[0].sum() == 3
    assert not world.sayable[1:, :3].any()
    policy = start("smoke", "EmojiRooms-v0").make_policy()
    parameters = jax.jit(policy.init)(key)

    @jax.jit
    def play(speaker):
        named, opening = rollout.told(world, params, speaker, 256)
        driver = rollout.policy_driver(policy, parameters, world, opening=opening)
        return rollout.play(world, named, jax.random.split(key, 256), key, driver, rollout.gumbel(256))[0]

    free = rollout.policy_episodes(policy, parameters, world, params, key, 256)
    own = np.asarray(world.opening(free.tokens))
    assert set(own[:, 0]) == set(tokens.BADGES[1:])
    assert np.isin(own[:, 1:], world.plan_sayings).all()
    assert free.written[:, 0].all()
    told = play(jnp.int32(ALICE))
    assert (world.opening(told.tokens)[:, 0] == tokens.BADGES[1 + ALICE]).all()
    assert not told.written[:, 0].any()


def test_a_policy_that_lacks_words_of_the_world_is_refused(key):
    """A token beyond its embedding would read as NaN, and the episode go on."""
    world, params = envs.make("EmojiRooms-v0")
    config = start("smoke", "EmojiRooms-v0")
    policy = policies.make(config.policy)
    parameters = policy.init(key)
    sequence = jnp.zeros((2, world.episode_length()), jnp.int32)
    for use in (
        lambda: rollout.policy_episodes(policy, parameters, world, params, key, 2),
        lambda: rl.read(policy, parameters, world, sequence),
        lambda: imitation.update_function(policy, world, 2),
    ):
        with pytest.raises(ValueError, match="knows 34 tokens and EmojiRooms-v0 has 53"):
            use()


def test_bad_rooms_end_in_one_line():
    for options, words in (
        ({"size": 17}, "size=17"),
        ({"turns": 0}, "turns=0"),
        ({"plan_length": -1}, "plan_length=-1"),
        ({"mold_rooms": 10}, "mold_rooms=10"),
        ({"exploits": 6}, "exploits=6"),
        ({"distance_range": (3, 2)}, "distance_range"),
        ({"distance_range": (10, 12)}, "distance_range"),
        ({"town": 1}, "town=1"),
        ({"towns": 4}, "towns=4"),
    ):
        with pytest.raises(ValueError, match=words):
            envs.make("EmojiRooms-v0", **options)
    config = start("smoke", "EmojiRooms-v0")
    for changes, words in (
        ({"prior": (".5,.5",)}, "pretrain.prior"),
        ({"prior": (".5,.5,.5",)}, "pretrain.prior"),
        ({"prior": ("1,0,0", "0,1,0")}, "pretrain.prior"),
        ({"prior": ("a,b,c",)}, "pretrain.prior"),
        ({"trips": 0}, "pretrain.trips"),
        ({"narration": 0.5}, "pretrain.narration"),
        ({"thinking_bob": 1.5}, "pretrain.thinking_bob"),
    ):
        with pytest.raises(ConfigError, match=words):
            check(dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, **changes)))
    maze = start("smoke")
    with pytest.raises(ConfigError, match=r"pretrain.trips=2"):
        check(dataclasses.replace(maze, pretrain=dataclasses.replace(maze.pretrain, trips=2)))


def test_rewards_do_not_make_other_bases():
    config = start("smoke", "EmojiRooms-v0")
    other = dataclasses.replace(config, world=rooms.RoomsOptions(gold_reward=1.0, style="Bob", style_reward=2.0))
    assert other.pretraining == config.pretraining
    assert dataclasses.replace(config, world=rooms.RoomsOptions(size=9)).pretraining != config.pretraining


@pytest.mark.parametrize("choices", some(["name", "all", "plan", "actions"]))
def test_rl_learns_from_the_decisions_that_it_is_told_to(choices, key):
    config = start("smoke", "EmojiRooms-v0")
    world, params = config.world.make()
    policy = config.make_policy()
    rl_config = dataclasses.replace(config.rl, episodes=8, choices=choices)
    batch, metrics = jax.jit(
        lambda: rl.collect(policy, world, rl_config, params, policy.init(key), key, 8, learner.Shards())
    )()
    if choices == "name":  # it is credited with the return, whatever values nobody learns
        np.testing.assert_allclose(batch.targets[:, 0].mean(), metrics["return"], atol=1e-5)
        assert rl_config.discount == rl_config.reward_scale == 1
    kinds = np.repeat(["name", "plan", "actions"], [1, world.plan_length, world.turns])
    learning = np.asarray([column.any() for column in np.asarray(batch.decided).T])
    assert learning[(kinds == choices) | (choices == "all")].any()
    assert not learning[(kinds != choices) & (choices != "all")].any()


def test_nobody_learns_from_what_nobody_chooses():
    for world, choices, words in (
        ({"badge": "shown"}, "name", "add --world.badge spoken"),
        ({"plan_length": 0}, "plan", "add --world.plan-length above 0"),
    ):
        config = start("smoke", "EmojiRooms-v0")
        config = dataclasses.replace(config, world=dataclasses.replace(config.world, **world))
        with pytest.raises(ConfigError, match=f"rl.choices={choices}: .*{words}"):
            check(dataclasses.replace(config, rl=dataclasses.replace(config.rl, choices=choices)))
