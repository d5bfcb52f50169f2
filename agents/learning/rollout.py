"""Playing episodes: worlds that speak tokens, and policies that continue them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agents.learning import objectives
from agents.policies import Intervention, Parameters, Policy, in_a_row
from envs import base, tokens

AT_ONCE = 32
"""Episodes that a member plays at the same time on a CPU, where larger working sets leave the cache."""


@struct.dataclass
class Episodes:
    """A batch of whole episodes."""

    tokens: jax.Array
    """int32[B, S], prompt · plan · turns."""
    actions: jax.Array
    """int32[B, T], 0 to 3."""
    rewards: jax.Array
    """float32[B, T]"""
    terminated: jax.Array
    """bool[B, T], whether the turn ended the episode for good."""
    neighbours: jax.Array
    """int8[B, T, 4], roles of the tiles around the agent before each turn."""
    written: jax.Array
    """bool[B, K], where the opening was still open and within its budget, so that there was a choice to make."""

    def _repr_html_(self) -> str:
        """The first few, as a notebook shows them: what was said and done, and what it earned."""
        told = np.asarray(self.tokens).reshape(-1, self.tokens.shape[-1])[:8]
        paid = np.asarray(self.rewards).reshape(-1, self.rewards.shape[-1])[:8].sum(axis=-1)
        rows = (
            f"<tr><td>{tokens.decode(row)}</td><td>{earned:+.1f}</td></tr>"
            for row, earned in zip(told, paid, strict=True)
        )
        return f"<table><tr><th>episode</th><th>rewards</th></tr>{''.join(rows)}</table>"

    @property
    def played(self) -> jax.Array:
        """bool[B, T], whether the turn came before the episode's end or was it."""
        terminated = self.terminated.astype(jnp.int32)
        return jnp.cumsum(terminated, axis=-1) == terminated

    @property
    def decided(self) -> jax.Array:
        """bool[B, K + T], whether the policy had a choice: the tokens of the opening, then the turns."""
        return jnp.concatenate([self.written, self.played], axis=-1)

    @property
    def pay(self) -> jax.Array:
        """float32[B, T], rewards of the turns played; 0 in the others."""
        return jnp.where(self.played, self.rewards, 0.0)

    @property
    def returns(self) -> jax.Array:
        """float32[B], undiscounted."""
        return self.pay.sum(axis=-1)


def succeeded(world: base.World, episodes: Episodes) -> jax.Array:
    """Which episodes count as a success, bool[B].

    In a world with a goal those that reached it, whatever they were paid; elsewhere those whose return is above 0, by
    more than rounding.
    """
    if world.has_goal:
        return jnp.any(episodes.terminated & episodes.played, axis=-1)
    return episodes.returns > objectives.rounding(episodes.pay)


def spoken(world: base.World, episodes: Episodes) -> tuple[jax.Array, jax.Array]:
    """Which tokens of episodes were chosen, and which the world said while they lasted; both bool[B, S]."""
    batch, length = episodes.tokens.shape
    chosen = jnp.zeros((batch, length), bool).at[:, world.decision_positions()].set(episodes.decided)
    lasted = jnp.repeat(episodes.played, world.observation_length + 1, axis=1)
    prompt = jnp.ones((batch, world.prompt_length), bool)
    told = jnp.concatenate([prompt, jnp.zeros((batch, world.opening_length), bool), lasted], axis=1)
    return chosen, told.at[:, world.action_positions()].set(False)


@dataclasses.dataclass(frozen=True)
class Driver:
    """Something that speaks first and chooses actions then: a policy with its cache, or a script."""

    begin: Callable[[jax.Array], Any]
    """Prompt tokens int32[B, P] → first memory."""
    choose: Callable[[Any, jax.Array, jax.Array, jax.Array, base.WorldState], tuple[jax.Array, Any]]
    """(memory, turn int32[], token said last int32[B], observation int32[B, O], states) → (scores float32[B, 4],
    memory). Actions are drawn from the softmax of the scores."""
    open: Callable[[Any, jax.Array, base.WorldState, jax.Array, "Noise"], tuple[jax.Array, jax.Array, Any]]
    """(memory, token said last int32[B], states, key, noise) → (opening int32[B, K], where there was a choice
    bool[B, K], memory). Called once, before the first turn, in worlds where something is said there."""
    fork: Callable[[Any, int], Any] = in_a_row
    """(first memory, times) → the same of so many episodes in a row for each."""


Noise = Callable[[jax.Array, int], jax.Array]
"""Key of a turn, number of choices C → Gumbel noise float32[B, C]."""


def gumbel(batch: int, local: Callable[[jax.Array], jax.Array] = lambda x: x) -> Noise:
    """Noise for `play`: one draw for the whole batch, of which `local` takes this device's share."""
    return lambda key, choices: local(jax.random.gumbel(key, (batch, choices), jnp.float32))


def play(
    world: base.World,
    params: base.WorldParams,
    episode_keys: jax.Array,
    key: jax.Array,
    driver: Driver,
    noise: Noise,
    *,
    observe: Callable[[base.WorldState, jax.Array], Any] | None = None,
    batched_params: bool = False,
    group: int = 1,
    stops: bool = False,
) -> tuple[Episodes, Any, base.WorldState]:
    """Play a batch of episodes to their end: a fresh maze each, reset once.

    Args:
        world, params: where; parameters are shared by the batch unless `batched_params`.
        episode_keys: keys [B]; all of a maze's chance.
        key: the chance of the turns, wind and actions; one key for the batch.
        driver: who plays.
        noise: from `gumbel`.
        observe: (states, action scores) → what to record before each turn.
        batched_params: whether every leaf of `params` has a leading axis B.
        group: episodes in a row whose keys (and parameters) are the same; their prompt is read once.
        stops: whether to stop when all episodes have ended. What is recorded of turns after that is all 0.

    Returns:
        The episodes, what `observe` returned with the turn as axis 0, and the states at the end.
    """

    def firsts(tree):
        return jax.tree.map(lambda x: x[::group], tree) if group > 1 else tree

    def everyone(tree):
        return in_a_row(tree, group) if group > 1 else tree

    axis = 0 if batched_params else None
    reset = jax.vmap(world.reset_env, in_axes=(0, axis))
    step = jax.vmap(world.step_env, in_axes=(None, 0, 0, axis))
    around = jax.vmap(world.neighbours, in_axes=(0, axis))
    shared = firsts(params) if batched_params else params
    started = reset(firsts(episode_keys), shared)
    prompts = jax.vmap(world.prompt, in_axes=(0, axis))(started[1], shared)
    observation, states = everyone(started)

    def turn(carry, index):
        said, observation, states, memory = carry
        act_key, step_key = jax.random.split(jax.random.fold_in(key, index))
        scores, memory = driver.choose(memory, index, said, observation, states)
        action = jnp.argmax(scores + noise(act_key, world.num_actions), axis=-1).astype(jnp.int32)
        before = (observation, around(states, params), observe(states, scores) if observe else None)
        observation, states, reward, terminated, _ = step(step_key, states, action, params)
        return (action + tokens.MOVES[0], observation, states, memory), (*before, action, reward, terminated)

    spoken = prompt = everyone(prompts)
    memory = driver.begin(prompts)
    memory = driver.fork(memory, group) if group > 1 else memory
    written = jnp.zeros((len(prompt), world.opening_length), bool)
    if world.opening_length:
        open_key = jax.random.fold_in(key, world.turns)
        opening, written, memory = driver.open(memory, prompt[:, -1], states, open_key, noise)
        spoken = jnp.concatenate([prompt, opening], axis=-1)
    start = (spoken[:, -1], observation, states, memory)
    loop = _until_all_have_ended if stops else jax.lax.scan
    (_, _, states, _), (observations, neighbours, record, *rest) = loop(turn, start, jnp.arange(world.turns))
    by_episode = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), (observations, neighbours, *rest))
    observations, neighbours, actions, rewards, terminated = by_episode
    conversation = jnp.concatenate([observations, actions[..., None] + tokens.MOVES[0]], axis=-1)
    episodes = Episodes(
        tokens=jnp.concatenate([spoken, conversation.reshape(len(prompt), -1)], axis=-1),
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        neighbours=neighbours,
        written=written,
    )
    return episodes, record, states


def _until_all_have_ended(turn, start, indices):
    """`jax.lax.scan` of `play`, which stops early."""
    records = jax.eval_shape(turn, start, indices[0])[1]
    blank = jax.tree.map(lambda s: jnp.zeros((len(indices), *s.shape), s.dtype), records)

    def goes_on(carry):
        index, _, records = carry
        return (index == 0) | ((index < len(indices)) & ~records[-1][index - 1].all())

    def step(carry):
        index, state, records = carry
        state, record = turn(state, indices[index])
        enter = functools.partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=0)
        return index + 1, state, jax.tree.map(enter, records, record)

    _, end, records = jax.lax.while_loop(goes_on, step, (jnp.int32(0), start, blank))
    return end, records


def check_words(policy: Policy, world: base.World) -> None:
    """Refuse a policy that does not know all words of a world; it would read numbers that mean nothing.

    Raises:
        ValueError: it does not.
    """
    if policy.vocabulary < world.vocabulary:
        raise ValueError(
            f"the policy knows {policy.vocabulary} tokens and {world.name} has {world.vocabulary}: make it with "
            "policies.make(config, world.vocabulary)"
        )


def policy_driver(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    *,
    temperature: jax.Array | float = 1.0,
    plan_budget: jax.Array | int | None = None,
    intervention: Intervention | None = None,
    opening: jax.Array | None = None,
) -> Driver:
    """A policy continues its episodes by cached decoding.

    The opening is read token by token. Each turn reads one chunk: the token said last (of the prompt or the opening, or
    the action), then the observation. The last action is never read.

    Args:
        policy, parameters: of one member.
        world: where it plays.
        temperature: of all that is chosen.
        plan_budget: int32[], tokens of a plan that the policy may choose; the rest says that the plan has ended.
        intervention: on the residual stream, as when whole episodes are read.
        opening: tokens int32[B, K] that are said in place of those that it would choose; -1 where it chooses.

    Raises:
        ValueError: the world has words that the policy does not know.
    """
    check_words(policy, world)
    sayings, sayable = jnp.asarray(world.sayings), jnp.asarray(world.sayable)
    ends = len(sayings) - 1
    spoken = world.prompt_length + world.opening_length

    def begin(prompt):
        cache = policy.empty_cache(len(prompt), world.episode_length() - 1)
        if prompt.shape[1] > 1:
            _, cache = policy.decode(parameters, cache, prompt[:, :-1], 0, intervention=intervention)
        return cache

    def choose(cache, index, said, observation, states):
        chunk = jnp.concatenate([said[:, None], observation], axis=-1)
        start = spoken - 1 + index * (world.observation_length + 1)
        last = np.array([chunk.shape[1] - 1])
        outputs, cache = policy.decode(parameters, cache, chunk, start, intervention=intervention, at=last)
        logits, _ = policy.heads(parameters, outputs.hidden[:, 0])
        return objectives.action_log_probabilities(logits) / temperature, cache

    def begin_to_speak(cache, said, states, key, noise):
        def say(carry, slot):
            cache, said, open = carry
            chunk = said[:, None]
            outputs, cache = policy.decode(
                parameters, cache, chunk, world.prompt_length - 1 + slot, intervention=intervention, at=np.array([0])
            )
            logits, _ = policy.heads(parameters, outputs.hidden[:, 0])
            scores = world.saying_log_probabilities(logits, sayable[slot]) / temperature
            if plan_budget is not None:
                open = open & (slot < world.spoken + plan_budget)
            drawn = jnp.argmax(scores + noise(jax.random.fold_in(key, slot), len(sayings)), axis=-1)
            drawn, chosen = jnp.where(open, drawn, ends), open
            said = sayings[drawn]
            if opening is not None:
                given = opening[:, slot]
                said, chosen = jnp.where(given >= 0, given, said), chosen & (given < 0)
            return (cache, said, open & (said != tokens.PLAN_END)), (said, chosen)

        if world.opening_length == 0:  # a scan of nothing needs a compiler
            return jnp.zeros((len(said), 0), jnp.int32), jnp.zeros((len(said), 0), bool), cache
        start = (cache, said, jnp.ones(said.shape, bool))
        (cache, _, _), (said, written) = jax.lax.scan(say, start, jnp.arange(world.opening_length))
        return said.T, written.T, cache

    def fork(cache, times):
        return policy.fork(cache, times, world.prompt_length - 1)

    return Driver(begin, choose, begin_to_speak, fork)


def policy_episodes(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    key: jax.Array,
    episodes: int,
    intervention: Intervention | None = None,
    local: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> Episodes:
    """Episodes of a policy at temperature 1; the same key gives the same mazes to every policy and intervention.

    Args:
        policy, parameters: of one member.
        world, params: where it plays.
        key: of mazes, weather and the policy's chance.
        episodes: B.
        intervention: on the residual stream.
        local: this device's rows of a batch; all by default.
    """
    maze_key, turn_key = jax.random.split(key)
    keys = local(jax.random.split(maze_key, episodes))
    driver = policy_driver(policy, parameters, world, intervention=intervention)
    return play(world, params, keys, turn_key, driver, gumbel(episodes, local))[0]


def told(
    world: base.World, params: base.WorldParams, speaker: jax.Array, episodes: int
) -> tuple[base.WorldParams, jax.Array]:
    """What tells a policy who it is: parameters whose prompts name it, or an opening for `policy_driver` that does.

    Args:
        world, params: where it plays.
        speaker: int32[], a place in `personas.PERSONAS`; -1 for nobody.
        episodes: B, of the opening.

    Returns:
        The parameters, and tokens int32[B, K].
    """
    badge = jnp.where(speaker < 0, -1, jnp.array(tokens.BADGES, jnp.int32)[speaker + 1])
    opening = jnp.full((episodes, world.opening_length), -1, jnp.int32)
    if world.spoken:
        return params, opening.at[:, 0].set(badge)
    return dataclasses.replace(params, head=jnp.where(badge < 0, params.head, badge)), opening


def scripted_driver(
    world: base.World,
    log_probabilities: Callable[[base.WorldState, jax.Array], jax.Array],
    write: Callable[[base.WorldState, jax.Array], jax.Array],
) -> Driver:
    """A script that sees the states.

    Args:
        world: where it plays.
        log_probabilities: (states of a batch, plans int32[B, plan_length]) → action log-probabilities float32[B, 4].
        write: (states of a batch, key) → openings int32[B, K]; called in worlds where something is said first.
    """

    def begin(prompt):
        return jnp.zeros((len(prompt), 0), jnp.int32)

    def choose(opening, index, said, observation, states):
        return log_probabilities(states, opening[:, world.spoken :]), opening

    def begin_to_speak(memory, said, states, key, noise):
        opening = write(states, key)
        return opening, world.open_slots(opening), opening

    return Driver(begin, choose, begin_to_speak)
