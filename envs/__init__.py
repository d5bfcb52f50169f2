"""Mazes that speak in emoji tokens: worlds, personas and pictures."""

from ground import late

# Its base class and spaces alone. The whole of gymnax brings environments of its own, and with them seaborn, pandas and
# a JAX backend, seconds before anybody is told of a wrong option.
gymnax = late.package("gymnax", ("environments.environment", "environments.spaces"), then=lambda: _tell_gymnax())

from envs import base, labyrinth, maze, rooms, tokens  # noqa: E402
from envs.contract import api_test  # noqa: E402

WORLDS: dict[str, type[base.World]] = {}
"""The worlds by name."""


def register(world: type[base.World]) -> None:
    """Make a world known: to `envs.make`, to `gymnax.make`, and to `train.py` as `--world.name`.

    Raises:
        ValueError: another world has its name.
    """
    name = world.Options.name
    if WORLDS.setdefault(name, world) is not world:
        raise ValueError(f"{name!r}: there is such a world already; choose another name")
    if not late.pending(gymnax):
        _tell_gymnax()


def _tell_gymnax() -> None:
    for name, world in WORLDS.items():
        if name not in gymnax.registered_envs:
            gymnax.register(name, world)


register(maze.EmojiMaze)
register(labyrinth.EmojiLabyrinth)
register(rooms.EmojiRooms)


def make(name: str, **options) -> tuple[base.World, base.WorldParams]:
    """A registered world and its parameters.

    Args:
        name: of the world, such as `EmojiMaze-v0`.
        **options: fields of the world's `Options`, for example `size=100, turns=15, layout="walk"`; a name that is a
            field of its parameters replaces that parameter, for example `wind_probability=0.0`.

    Raises:
        ValueError: for an unknown world, an unknown option or a value out of range; the message names the remedy.
    """
    if name not in WORLDS:
        raise ValueError(f"{name!r}: no such world; choose one of {', '.join(WORLDS)}")
    return WORLDS[name].make(options)


def gymnasium(name: str, *, prompt: bool = False, render_mode: str | None = None, **options):
    """A world as a `gymnasium.Env`, with NumPy arrays, for loops that step one environment at a time.

    Args:
        name: of the world.
        prompt: put the prompt before every observation, int32[P + O]. Without it whoever does not read
            `info["prompt"]` of `reset` walks a labyrinth blind.
        render_mode: `rgb_array` or `ansi`.
        **options: as in `make`.

    Raises:
        ValueError: as `make` does.
    """
    from envs import adapters  # late, and Gymnasium with it

    return adapters.Gymnasium(name, prompt=prompt, render_mode=render_mode, **options)


def legacy(name: str, *, prompt: bool = False, one_hot: bool = False, **options):
    """A world with the five-tuple of gymnax before 1.0, with which PureJaxRL and rejax train as they are.

    Args:
        name: of the world.
        prompt: put the prompt before every observation.
        one_hot: give tokens as vectors float32[V] in a row, which a dense layer can tell apart, instead of ids.
        **options: as in `make`; the parameters become `default_params`.

    Raises:
        ValueError: as `make` does.
    """
    from envs import adapters

    return adapters.Legacy(*make(name, **options), prompt, one_hot)


__all__ = [
    "WORLDS", "api_test", "base", "gymnasium", "labyrinth", "legacy", "make", "maze", "register", "rooms", "tokens",
]  # fmt: skip
