"""Settings and fixtures of every test."""

import functools
import gc
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator

# Before anything imports matplotlib or starts a JAX backend. Tests say the same on every machine: they run on the
# CPU and draw without a screen, unless the caller asks for something else.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

# Programs that several tests, their subprocesses or other test workers share are compiled once a session; the small
# ones too, since a subprocess has more than a hundred of them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="emojimaze-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import jax
import optax
import pytest

from agents.learning import population
from tests import tiny

# Tests compile much and compute little: with simpler code and less optimisation they take half the time.
# `tests/laptop.py` is measured as a user would run it. XLA reads them when a backend starts.
_FLAGS = (
    "--xla_backend_optimization_level=0",
    *(f"--{name}=false" for name in tiny.AS_USERS),
    "--xla_cpu_multi_thread_eigen=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
_given = os.environ.get("XLA_FLAGS", "").split()
_names = [flag.partition("=")[0] for flag in _given]
os.environ["XLA_FLAGS"] = " ".join([*_given, *(flag for flag in _FLAGS if flag.partition("=")[0] not in _names)])

jax.config.update("jax_num_cpu_devices", 4)  # simulated, so that sharding is tested; costs no time
jax.config.update("jax_numpy_dtype_promotion", "strict")  # int32 + float32 is an error; write the cast down
jax.config.update("jax_numpy_rank_promotion", "raise")  # [3] + [2, 3] is an error; write the axis down
jax.config.update("jax_legacy_prng_key", "error")  # typed keys only; a raw key passes for data under vmap


def _promote(owner: object, name: str) -> None:
    """Let one function of another library mix dtypes, so that strict promotion can hold for all of our code."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    setattr(owner, name, wrapper)


_promote(optax.tree, "bias_correction")  # Adam's decay**count, a float to the power of an int32

# Programs that play long are optimised whatever the flags say; in tests they play too little to earn it.
population.OPTIMISED.clear()

# Tracing makes much and leaves little: a collector that looks less often saves a tenth of a worker's time.
gc.set_threshold(100_000, 20, 20)

# No deadline: the first example compiles. In CI the examples are the same in every run.
hypothesis.settings.register_profile("default", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", hypothesis.settings.get_profile("default"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: some tests wait, for other processes, files and signals."""
    return 1 + (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


_LONGEST = (
    *("test_study_contract", "test_train", "test_measure", "test_inside", "test_tour"),
    *("test_processes", "test_policies", "test_groups", "test_ledger", "test_rooms"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one of them while the others have nothing to do."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture
def retraced() -> Iterator[Callable[[], None]]:
    """For tests that change what tracing meets: called, and at the end, it forgets every program of this process."""

    def forget() -> None:
        population.program.cache_clear()
        jax.clear_caches()

    forget()
    yield forget
    forget()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> jax.Array:
    """A random key of the test's own: the same in every run, different between tests."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))
