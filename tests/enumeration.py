"""Every episode of a tiny problem, and the accounts of KL by their definitions: the oracle of selection and tilting."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from analysis import selection
from tests import tabular

MAZES, PERSONAS, STATES, ACTIONS, TURNS = 3, 3, 6, 2, 7
PRIOR = np.array([0.5, 0.3, 0.2])
KINDS = ("divergence", "selection", "choice", "routing", "within")
"""Of `selection.Split`."""


@functools.cache
def random_table():
    """Random moves, rewards and personas; state 0 is final."""
    generator = np.random.default_rng(0)
    following = generator.integers(0, STATES, (MAZES, STATES, ACTIONS))
    rewards = generator.normal(size=(MAZES, STATES, ACTIONS)) / 2
    following[:, 0], rewards[:, 0] = 0, 0
    log_policies = special.log_softmax(1.5 * generator.normal(size=(MAZES, PERSONAS, STATES, ACTIONS)), axis=-1)
    return tabular.Table(following, rewards, log_policies, np.array([1, 2, 3]), TURNS)


@functools.cache
def random_policy():
    """Log-probabilities of a policy that is no mixture and remembers the turn, float64[M, T, X, A]."""
    scores = np.random.default_rng(1).normal(size=(MAZES, TURNS, STATES, ACTIONS))
    return special.log_softmax(scores, axis=-1)


class Episodes:
    """All action sequences of each maze, in float64; those that differ after the end only are told apart."""

    def __init__(self, table, alien):
        self.actions = np.array(list(itertools.product(range(ACTIONS), repeat=TURNS)))
        shape = (MAZES, len(self.actions))
        self.rewards, self.policy = np.zeros(shape), np.zeros(shape)
        self.personas = np.zeros((*shape, PERSONAS))
        self.states = np.zeros((*shape, TURNS), int)
        for maze, (n, actions) in itertools.product(range(MAZES), enumerate(self.actions)):
            state = int(table.starts[maze])
            for turn, action in enumerate(actions):
                self.states[maze, n, turn] = state
                self.rewards[maze, n] += table.rewards[maze, state, action]
                self.policy[maze, n] += alien[maze, turn, state, action]
                self.personas[maze, n] += table.log_policies[maze, :, state, action]
                state = int(table.following[maze, state, action])
        self.base = np.asarray(special.logsumexp(self.personas, b=PRIOR, axis=-1))
        self.posterior = np.exp(self.personas + np.log(PRIOR) - self.base[..., None])

    def tilted(self, scale):
        return special.log_softmax(self.base + scale * self.rewards, axis=-1)

    def earned(self, log_policy):
        return (np.exp(log_policy) * self.rewards).sum(axis=-1).mean()


@functools.cache
def episodes():
    return Episodes(random_table(), random_policy())


def divergence(log_first, log_second):
    return (np.exp(log_first) * (log_first - log_second)).sum(axis=-1)


def oracle(every, log_policy):
    """`KINDS` by their definitions, π^(i) written out; weights and changes of each maze."""
    chances = np.exp(log_policy)
    weights = (chances[..., None] * every.posterior).sum(axis=1)
    change = np.zeros((MAZES, PERSONAS))
    for maze, i in itertools.product(range(MAZES), range(PERSONAS)):
        own = chances[maze] * every.posterior[maze, :, i] / weights[maze, i]
        change[maze, i] = weights[maze, i] * (own * (np.log(own) - every.personas[maze, :, i])).sum()
    total = weights.mean(axis=0)
    choice, selected = (total * np.log(total / PRIOR)).sum(), special.rel_entr(weights, PRIOR).sum(axis=-1).mean()
    parts = (divergence(log_policy, every.base).mean(), selected, choice, selected - choice, change.sum(axis=1).mean())
    return dict(zip(KINDS, parts, strict=True)), weights, change


def parts(found):
    found = jax.tree.map(np.asarray, found)
    return {name: float(getattr(found, name)) for name in KINDS}


def f32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


mixture = jax.jit(selection.best_mixture, static_argnames="tolerance")


def from_mixture(log_policy, log_personas, weights):
    """KL(π ‖ Σ v_i π_i) of listed episodes; how far it is above the least, at most."""
    log_mixture = special.logsumexp(log_personas, b=np.asarray(weights, float), axis=-1)
    gains = np.exp(log_policy - log_mixture) @ np.exp(log_personas)
    return divergence(log_policy, log_mixture), gains.max() - 1


split = jax.jit(selection.split, static_argnames="jackknife")


def split_of(every, log_policy):
    return split(*f32(log_policy, every.personas, PRIOR), chances=jnp.exp(*f32(log_policy)))


def draw(generator, log_chances, shape):
    """Indices of episodes int[*shape], drawn by their chances."""
    chances = np.exp(log_chances)
    return generator.choice(len(chances), shape, p=chances / chances.sum())
