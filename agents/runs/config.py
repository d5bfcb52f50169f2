"""The whole configuration of a run: typed, frozen, checked before anything is computed, and written as JSON."""

import dataclasses
import difflib
import functools
import itertools
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import envs
from agents import policies
from agents.learning import hyperparameters
from agents.learning.algorithms import ALGORITHMS, RLConfig
from agents.learning.imitation import PretrainConfig, SFTConfig
from agents.policies import Policy, PolicyConfig
from agents.runs import sense, worlds
from envs import base, maze
from ground import numbers
from ground.terminal import ConfigError

SECTIONS = ("world", "pretrain", "sft", "rl")
"""Parts of the config whose float fields can be swept."""

_TILE_ORDERS = tuple(itertools.permutations(range(3)))


@dataclasses.dataclass(frozen=True)
class PopulationConfig:
    """Who is trained: seeds × a grid of hyper-parameters, all in one compiled program."""

    seeds: int = 8
    """Members that differ by their seed alone, per point of the grid: --seed, --seed + 1, and so on."""
    sweep: tuple[str, ...] = ()
    """Float fields and their values, for example `rl.learning_rate=1e-4,3e-4`; several make a grid."""
    tile_maps: Literal["same", "permuted"] = "same"
    """`same`: every member sees the world's emoji. `permuted`: seed by seed the six orders of the Path, Gold and Mold
    emoji in turn, so that what members share cannot be an emoji's own; it needs a base that knows no emoji's role, so
    add `--pretrain.tile-maps balanced`."""
    at_once: int = 0
    """Members that one device trains at the same time; bounds memory. 0 chooses: 1 on a CPU, elsewhere as many as fit
    into the device's memory by the compiler's own count, which a line tells. On a CPU the results do not depend on it,
    and each one more takes longer to compile."""
    microbatch: int = 0
    """Episodes of a member in one forward and backward pass. 0 chooses: 16 on a CPU, where they stay in the cache,
    8 in RL of 256 tokens or more; elsewhere up to 512, so that those of all members that a device trains at the same
    time are 262,144 tokens at most."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One policy of a population."""

    seed: int
    """Seed of its training."""
    values: Mapping[str, float] = dataclasses.field(hash=False)
    """Its point of the grid: swept field → value."""

    @property
    def label(self) -> str:
        """Its point of the grid for people to read, such as `rl.learning_rate=0.001`; empty where nothing is swept."""
        return ", ".join(f"{path}={numbers.told_apart(value)}" for path, value in self.values.items())


@dataclasses.dataclass(frozen=True)
class Config:
    """A run: pretrain a small language model of three personas, then train a population of it by PPO."""

    scale: Literal["smoke", "laptop", "paper"] = "laptop"
    """Sizes to start from: `smoke` takes seconds, `laptop` minutes on 2 CPU cores, `paper` one large GPU."""
    algorithm: str = "ppo"
    """Switches of `rl` to start from; see docs/algorithms.md. A wrong name lists them."""
    seed: int = 0
    """Seed of the population's first member."""
    world: base.Options = maze.MazeOptions()
    policy: PolicyConfig = PolicyConfig()
    pretrain: PretrainConfig = PretrainConfig()
    sft: SFTConfig = SFTConfig()
    rl: RLConfig = RLConfig()
    population: PopulationConfig = PopulationConfig()
    evaluation_episodes: int = 4096
    """Episodes behind every return that the summary reports, the same mazes for all; at least 1,024."""

    def __post_init__(self):
        if self.algorithm not in ALGORITHMS:
            raise ConfigError(f"--algorithm {self.algorithm}: unknown; choose one of {', '.join(ALGORITHMS)}")

    @functools.cached_property
    def members(self) -> tuple[Member, ...]:
        """The population, grid point by grid point and seed by seed."""
        grid = [parse_sweep(self, text) for text in self.population.sweep]
        points = itertools.product(*([(path, value) for value in values] for path, values in grid))
        return tuple(
            Member(self.seed + index, dict(point)) for point in points for index in range(self.population.seeds)
        )

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of the run, in order."""
        return ("pretrain", "sft", "rl") if self.sft.updates else ("pretrain", "rl")

    @property
    def before_rl(self) -> str:
        """The stage whose end RL starts from."""
        return self.stages[-2]

    @property
    def prior(self) -> np.ndarray:
        """Chances of the personas in the town where members play, or in all of them together, float64[3]."""
        chances = self.pretrain.priors(self.world.towns)
        return chances[self.world.town - 1] if self.world.town else chances.mean(axis=0)

    def make_policy(self) -> Policy:
        """The policy, which knows the words of the world."""
        return policies.make(self.policy, self.world.make()[0].vocabulary)

    def per_member(self, section: str, members: Sequence[Member] = ()) -> Any:
        """A section (of `SECTIONS`) with each float field as float32[M], of the population or of `members`."""
        config = getattr(self, section)

        def values(name: str) -> jax.Array:
            usual = getattr(config, name)
            every = [member.values.get(f"{section}.{name}", usual) for member in members or self.members]
            return jnp.array(every, jnp.float32)

        return dataclasses.replace(config, **{name: values(name) for name in hyperparameters.names(type(config))})

    def world_params(self, members: Sequence[Member] = ()) -> base.WorldParams:
        """The world's parameters with the member as axis 0, of the population or of `members`."""

        def point(member: Member) -> tuple:
            swept = ((path, x) for path, x in member.values.items() if path.startswith("world."))
            return (0 if members else self._tile_order(member), *swept)

        # Each world is made once: a population may have thousands of members.
        points = [point(member) for member in members or self.members]
        place = {point: index for index, point in enumerate(dict.fromkeys(points))}
        params: list[base.WorldParams] = []
        for order, *swept in place:
            changes = {path.removeprefix("world."): x for path, x in swept}
            own = jax.tree.map(np.asarray, dataclasses.replace(self.world, **changes).make()[1])
            tiles = np.concatenate([own.tile_map[list(_TILE_ORDERS[order])], own.tile_map[3:]])
            params.append(dataclasses.replace(own, tile_map=tiles))
        # In NumPy, so that nothing is compiled to check a config; a study has dozens.
        index = np.array([place[point] for point in points])
        return jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves)[index]), *params)

    def _tile_order(self, member: Member) -> int:
        return (member.seed - self.seed) % len(_TILE_ORDERS) if self.population.tile_maps == "permuted" else 0

    @property
    def pretraining(self) -> dict[str, Any]:
        """All that a base depends on besides its seed and what is swept, as plain values: equal ones, equal bases."""
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in ("world", "policy", "pretrain")}
        del sections["pretrain"]["shared"]
        for name in self.world.unseen:
            del sections["world"][name]
        return sections | {"population": {"microbatch": self.population.microbatch}}

    def base(self, member: Member) -> Member:
        """The base that a member starts from: its seed, and what is swept of its pretraining and its world."""
        if self.pretrain.shared:
            return Member(0, {})
        unseen = [f"world.{name}" for name in self.world.unseen]
        swept = {path: x for path, x in member.values.items() if path.startswith(("pretrain.", "world."))}
        return Member(member.seed, {path: x for path, x in swept.items() if path not in unseen})

    @functools.cached_property
    def bases(self) -> tuple[Member, ...]:
        """Every base once, in the order of the members; equal ones of two populations differ by rounding at most."""
        return tuple(dict.fromkeys(map(self.base, self.members)))

    @property
    def base_of(self) -> np.ndarray:
        """int[M], the place in `bases` of each member's."""
        place = {base: index for index, base in enumerate(self.bases)}
        return np.array([place[self.base(member)] for member in self.members])

    @property
    def starts(self) -> np.ndarray:
        """int[M], for each member the first that was its twin before RL: the same parameters in the same world."""
        first: dict[tuple, int] = {}
        return np.array([first.setdefault(self.before(member), index) for index, member in enumerate(self.members)])

    def before(self, member: Member) -> tuple:
        """What a member was before RL: equal for twins, also in another run that pretrains alike."""
        tuned = member if self.sft.updates else None
        world = tuple(item for item in member.values.items() if item[0].startswith("world."))
        return (self.base(member), self._tile_order(member), world, tuned)


SCALES: dict[str, Config] = {
    "smoke": Config(
        scale="smoke",
        policy=PolicyConfig(width=32, layers=2, heads=2, hidden=64),
        pretrain=PretrainConfig(updates=60, chunk=20, episodes=32),
        rl=RLConfig(updates=6, episodes=32, minibatches=2),
        population=PopulationConfig(seeds=2),
        evaluation_episodes=1024,
    ),
    "laptop": Config(),
    "paper": Config(
        scale="paper",
        policy=PolicyConfig(width=256, layers=4, heads=8, hidden=1024, compute_dtype="bfloat16"),
        pretrain=PretrainConfig(updates=4000, chunk=100, episodes=512, learning_rate=1e-3, warmup=200),
        rl=RLConfig(updates=400, chunk=10, episodes=1024, minibatches=8, learning_rate=3e-4),
        population=PopulationConfig(seeds=64),
        evaluation_episodes=16384,
    ),
}
"""What `--scale` starts from; every other option changes one value of it."""


def start(scale: str = "laptop", world: str = "EmojiMaze-v0", algorithm: str = "ppo") -> Config:
    """The config that a scale, a world and an algorithm stand for.

    Raises:
        ConfigError: no such name.
    """
    for option, name, known in (("scale", scale, SCALES), ("world.name", world, envs.WORLDS)):
        if name not in known:
            raise ConfigError(f"--{option} {name}: unknown; choose one of {', '.join(known)}")
    config = dataclasses.replace(SCALES[scale], algorithm=algorithm, world=envs.WORLDS[world].Options())
    config = changed(config, envs.WORLDS[world].defaults(scale))
    return dataclasses.replace(config, rl=dataclasses.replace(config.rl, **ALGORITHMS[algorithm].switches))


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with other values of some fields, named by their paths, such as `rl.updates`."""
    for path, value in values.items():
        section, _, field = path.partition(".")
        part = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def check(config: Config, *, stored: bool = False) -> None:
    """Refuse a configuration that cannot run.

    Args:
        config: of a run.
        stored: whether the run is there already. One that ran, and only does not do what it says, is let through.

    Raises:
        ConfigError: one line that names the option, its value and the remedy.
    """
    for section in (None, "policy", *SECTIONS[1:], "population"):
        part = config if section is None else getattr(config, section)
        for field in dataclasses.fields(part):
            if type(value := getattr(part, field.name)) is int:
                check_range(f"{section}.{field.name}" if section else field.name, value)
    for section in SECTIONS[1:]:
        _check_multiple(config, f"{section}.updates", f"{section}.chunk")
    rl = config.rl
    for divisor in ("rl.minibatches", "rl.group"):
        _check_multiple(config, "rl.episodes", divisor)
    if rl.group == 1 and (rl.advantage.startswith("group") or rl.informative_groups):
        raise ConfigError("--rl.group=1: episodes are compared within their group; use at least 2")
    if rl.shuffle_rewards and rl.episodes == rl.group:
        raise ConfigError(f"--rl.episodes={rl.episodes}: nobody else to be paid for; use at least {2 * rl.group}")
    if rl.importance == "decoupled" and rl.staleness == 0:
        raise ConfigError("--rl.importance=decoupled: nothing is stale; add --rl.staleness")
    if rl.imitation == "sft":
        _check_multiple(config, "sft.episodes", "rl.minibatches", "RL imitates some in each step; ")
        if config.sft.source != "personas":
            raise ConfigError(f"--sft.source={config.sft.source}: RL imitates personas alone; leave it out")
    if rl.reference == "none" and rl.reference_reset:
        raise ConfigError(f"--rl.reference-reset={rl.reference_reset}: there is no reference; add --rl.reference loss")
    if config.evaluation_episodes % 256:
        raise ConfigError(f"--evaluation_episodes={config.evaluation_episodes}: use a multiple of 256")
    last = 2**31 - config.population.seeds
    if config.seed > last:
        raise ConfigError(f"--seed={config.seed}: members have the seeds from there on; use at most {last}")
    _check_grid(config)
    members = config.members
    for path in members[0].values:
        option = f"--population.sweep {path}"
        if path.startswith("pretrain.") and config.pretrain.shared:
            raise ConfigError(f"{option}: all members share one base; add --pretrain.no-shared to sweep it")
        if path.startswith("sft.") and rl.imitation == "sft":
            raise ConfigError(f"{option}: RL imitates alike in all members; start one run per value")
        if path.startswith("sft.") and not config.sft.updates:
            raise ConfigError(f"{option}: nobody is fine-tuned; add --sft.updates")
    for member in members[:: config.population.seeds]:
        for section in SECTIONS[1:]:  # a world checks its own
            part = getattr(config, section)
            for name in hyperparameters.names(type(part)):
                value = member.values.get(f"{section}.{name}", getattr(part, name))
                check_range(f"{section}.{name}", value)
    try:
        config.world_params()
        world = config.world.make()[0]
    except ValueError as error:
        raise ConfigError(f"--world.{error}") from None
    if (rl.choices == "name" and not world.spoken) or (rl.choices == "plan" and not world.plan_length):
        remedy = {"name": "--world.badge spoken", "plan": "--world.plan-length above 0"}[rl.choices]
        raise ConfigError(f"--rl.choices={rl.choices}: nobody chooses one in this world; add {remedy}")
    for section in ("pretrain", "sft"):
        _check_demonstrations(config, world, section)
    if not stored:
        sense.check(config)


def _check_demonstrations(config: Config, world: base.World, section: str) -> None:
    """Refuse demonstrations that a world cannot give."""
    shown = getattr(config, section)
    try:
        shown.priors(world.towns)
    except ValueError as error:
        raise ConfigError(f"--{section}.prior {error}") from None
    if shown.trips > 1 and not world.map_length:
        raise ConfigError(f"--{section}.trips={shown.trips}: every episode of {world.name} is a map of its own; use 1")
    if shown.trips > 1 and getattr(shown, "source", "personas") != "personas":
        raise ConfigError(f"--{section}.trips={shown.trips}: a policy plays one trip at a time; use 1")
    tokens = world.episode_length(shown.trips)
    if tokens > base.LONGEST:
        raise ConfigError(
            f"--{section}.trips={shown.trips}: {tokens:,} tokens with their map; use fewer: {base.LONGEST:,} at most"
        )
    if getattr(shown, "choices", "all") == "plan" and not world.opening_length:
        raise ConfigError(f"--{section}.choices=plan: nothing is said before the first move in {world.name}; use all")
    if shown.narration and not world.has_feelings:
        raise ConfigError(f"--{section}.narration={shown.narration:g}: nobody can narrate in {world.name}; use 0")


_PROBABILITIES = (
    *("badge_probability", "slip", "narration", "discount", "trace_decay"),
    *("thinking_larry", "thinking_bob", "thinking_alice", "plan_slip"),
    *("plan_following", "skill", "plan_budget", "final_plan_budget", "imitation_weight", "final_imitation_weight"),
)
MOST_MEMBERS = 2**16
"""Members of a population at most; more would fill the memory with their names alone."""
LARGEST = 2**16
"""Of any size of a policy."""
MOST_EPISODES = 2**20
"""Episodes played at once at most, and of an evaluation."""
_INTEGERS, _FLOATS = 2**31 - 1, float(np.finfo(np.float32).max)
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_PROBABILITIES, (0.0, 1.0)),
    **dict.fromkeys(("chunk", "minibatches", "group", "trips", "seeds"), (1, _INTEGERS)),
    "episodes": (1, MOST_EPISODES),
    "evaluation_episodes": (1024, MOST_EPISODES),
    "epochs": (1, 1024),
    "staleness": (0, 1024),
    "seed": (-(2**31), _INTEGERS),
    "pretrain.seed": (0, _INTEGERS),
    # Divisors, and what the quotients can bear in 32 bits.
    "temperature": (1e-4, 1e4),
    "max_gradient_norm": (1e-20, 1e30),
    "reward_scale": (1e-20, 1e20),
}
"""What a number may be, by its path or its name alone; any other is 0 or more."""


def _check_grid(config: Config) -> None:
    """Refuse a grid that is too large, or in which two points are the same."""
    grid, size = {}, config.population.seeds
    for text in config.population.sweep:
        path, values = parse_sweep(config, text)
        option = f"--population.sweep {text}"
        if path in grid:
            raise ConfigError(f"{option}: {path} is swept already; give all of its values at once")
        if len({float(np.float32(value)) for value in values}) < len(values):
            raise ConfigError(f"{option}: two values are the same number of 32 bits; give each once")
        grid[path] = values
        size *= len(values)
    if size > MOST_MEMBERS:
        raise ConfigError(
            f"--population.seeds={config.population.seeds}: {size:,} members; use at most {MOST_MEMBERS:,}"
        )


def by_path(tree: Any, path: str = "") -> dict[str, Any]:
    """Values of nested dicts, such as `to_dict` makes, by their dotted paths."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {k: v for name, part in tree.items() for k, v in by_path(part, f"{path}.{name}" if path else name).items()}


def check_range(path: str, value: float) -> None:
    """Refuse a number that 32 bits cannot hold, or out of the range of what has its name, such as `rl.temperature`.

    Raises:
        ConfigError: one line that names it, its value and the remedy.
    """
    whole = type(value) is int
    option = f"--{path}={value}" if whole else f"--{path}={value:g}"
    if whole and not -(2**31) <= value <= _INTEGERS:
        raise ConfigError(f"{option}: use a 32-bit integer")
    if not abs(value) <= _FLOATS:
        raise ConfigError(f"{option}: use a finite number of 32 bits")
    others = (0, LARGEST if path.startswith("policy.") else _FLOATS)
    low, high = _RANGES.get(path) or _RANGES.get(path.rpartition(".")[2], others)
    if (low, high) == (0, 1) and not 0 <= value <= 1:
        raise ConfigError(f"{option}: use a value from 0 to 1")
    if value < low:
        raise ConfigError(f"{option}: use {low:g} or more")
    if value > high:
        raise ConfigError(f"{option}: use {high:,} at most" if whole else f"{option}: use {high:g} at most")
    if 0 < value < np.finfo(np.float32).tiny:
        raise ConfigError(f"{option}: too small for 32 bits, which make 0 of it; use 0 or a larger number")


def _check_multiple(config: Config, path: str, divisor: str, why: str = "") -> None:
    """Refuse a number that another one does not divide."""
    whole, part = (operator.attrgetter(name)(config) for name in (path, divisor))
    if whole % part:
        raise ConfigError(f"--{path}={whole}: {why}use a multiple of {divisor}={part}")


def sweepable(config: Config) -> list[str]:
    """Paths of all float fields, such as `rl.learning_rate`."""
    return [f"{name}.{field}" for name in SECTIONS for field in hyperparameters.names(type(getattr(config, name)))]


def parse_sweep(config: Config, text: str) -> tuple[str, list[float]]:
    """Field and values of one `--population.sweep` argument.

    Raises:
        ConfigError: no such field, a field that shapes the program, or a value that is no number.
    """
    path, equals, listed = text.partition("=")
    path = path.replace("-", "_")
    option = f"--population.sweep {text}"
    if not equals or not listed:
        raise ConfigError(f"{option}: write FIELD=VALUE,VALUE, for example rl.learning_rate=1e-4,3e-4")
    known = sweepable(config)
    if path not in known:
        section, _, field = path.partition(".")
        if section in SECTIONS and hasattr(getattr(config, section), field):
            raise ConfigError(
                f"{option}: {path} shapes the compiled program and cannot be swept; "
                f"start one run per value, or sweep a number such as {known[-1]}"
            )
        close = difflib.get_close_matches(path, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"sweep a number such as {known[-1]}, see --help-all"
        raise ConfigError(f"{option}: no field {path}; {hint}")
    try:
        values = [float(value) for value in listed.split(",")]
    except ValueError:
        raise ConfigError(f"{option}: values must be numbers, separated by commas") from None
    if not all(abs(value) <= _FLOATS for value in values):
        raise ConfigError(f"{option}: use finite numbers of 32 bits")
    return path, values


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(document: Mapping[str, Any], cls: type = Config, where: str = "config") -> Any:
    """The config that `to_dict` wrote. Nothing in the document is executed.

    A field that is missing was added after the run was made: its default means what older runs did.

    Raises:
        ConfigError: a field is unknown or of another type, or makes no policy.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for name in document:
        if name not in names:
            raise ConfigError(f"{where}.{name}: unknown field; this run was made by another version of emojimaze")
    values = {name: _value(document[name], hints[name], f"{where}.{name}") for name in names if name in document}
    try:
        return cls(**values)
    except ValueError as error:  # a policy of impossible sizes
        raise ConfigError(str(error)) from None


def _value(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected an object, found {type(value).__name__}")
        if hint is base.Options:
            hint, value = worlds.of_document(value, where)
        return from_dict(value, hint, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, (list, tuple)) and (arguments[-1] is ... or len(value) == len(arguments)):
        return tuple(_value(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (typing.Union, types.UnionType) and value is None:
        return None
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ConfigError(f"{where}={value!r}: not a valid value; restore config.json, or train again")
