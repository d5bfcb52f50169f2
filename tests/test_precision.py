"""What bfloat16 leaves to float32, and how float32 is multiplied: said by the config, inherited from nobody."""

import ast
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import policies
from agents.learning import algorithms, demonstrations, learner, objectives, rl
from agents.policies import Intervention, PolicyConfig, kernels
from agents.runs import stages
from agents.runs.config import Config
from tests import tiny
from tests.thrift import some

FAMILIES = {
    "transformer": PolicyConfig(width=16, layers=2, heads=2, hidden=32),
    "gru": PolicyConfig(family="gru", width=16, layers=2, heads=2, hidden=32),
}
OPTIMISED = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}
"""Long passes, which take longer to run than to compile with the optimisation of the other tests."""
BOUND = 0.012
"""Of the relative error of a parameter's gradient in bfloat16; products of rounded numbers alone give .002 to .006."""


PRODUCTS = ("einsum", "matmul", "dot", "vdot", "inner", "tensordot", "dot_general")


def unsaid(source: str) -> list[str]:
    """Products of JAX's arrays in a module whose precision the device would choose, or a global setting."""
    nodes = list(ast.walk(ast.parse(source)))
    if not any(isinstance(node, ast.alias) and node.name == "jax.numpy" for node in nodes):
        return []

    def says(call: ast.Call) -> bool:
        """As a keyword, or among the arguments: those are arrays, formulas, axes, and then the precision."""
        return any(word.arg == "precision" for word in call.keywords) or any(
            "recision" in ast.unparse(x) for x in call.args
        )

    products = [f"{owner}.{name}" for owner in ("jnp", "jax.lax", "lax") for name in PRODUCTS]
    silent = [ast.unparse(node) for node in nodes if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)]
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        names = [
            ast.unparse(call.func),
            *(ast.unparse(x) for x in call.args[:1] if "partial" in ast.unparse(call.func)),
        ]
        if {*names} & {*products} and not says(call):
            silent.append(ast.unparse(call))
    return silent


def test_every_product_says_how_precise_it_is():
    root = Path(__file__).parent.parent
    for room in ("ground", "envs", "agents", "analysis", "studies"):
        for path in (root / room).rglob("*.py"):
            silent = unsaid(path.read_text(encoding="utf-8"))
            if path.name == "kernels.py":  # `_einsum`, of which each product says it
                silent.remove("functools.partial(jnp.einsum, preferred_element_type=jnp.float32)")
            assert not silent, f"{path.relative_to(root)}: say precision=, or use ground.precise.product"


@pytest.mark.parametrize(
    "text", ["jnp.dot(a, b)", "a @ b", "partial(jnp.einsum)('ab,bc', a, b)", "jax.lax.dot_general(a, b, c)"]
)
def test_a_product_that_does_not_say_is_noticed(text):
    assert unsaid(f"import jax.numpy as jnp\n{text}")
    assert not unsaid(f"import numpy as np\n{text}")
    assert not unsaid("import jax.numpy as jnp\njnp.dot(a, b, precision='highest')")


@functools.cache
def shown(count: int):
    """A world, its parameters and episodes of its personas, with returns to go for the value head at every token."""
    # What is summed tells the old sums from the new ones: few episodes need to be longer.
    world, params = dataclasses.replace(Config().world, turns=15 if count < 100 else 5).make()
    config = demonstrations.Demonstrations()
    episodes = jax.jit(
        lambda: demonstrations.persona_episodes(config, world, params, jax.random.key(0), count, learner.Shards())
    )()
    later = jnp.flip(jnp.cumsum(jnp.flip(episodes.rewards, 1), axis=1), 1) * 0.05
    targets = jnp.repeat(later, world.observation_length + 1, axis=1)
    return world, params, episodes.tokens, targets[:, : world.episode_length() - 1]


def policy_of(family: str, **changes) -> policies.Policy:
    return policies.make(dataclasses.replace(FAMILIES[family], **changes))


def moved(parameters, key):
    """As they might be after training: a fresh value head has a gradient of its own alone."""
    leaves, structure = jax.tree.flatten(parameters)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def parameters_of(family: str, member: int = 0):
    """The same in every test, since how far gradients cancel decides how much of them is rounding."""
    return moved(policy_of(family).init(jax.random.key(3 + member)), jax.random.key(8))


def gradient_of_one(policy, parameters, tokens, targets):
    """Of the mean next-token loss and the value loss of one pass over all episodes."""

    def loss(parameters, part):
        sequence, targets = part
        logits, values = policy.heads(parameters, policy.forward(parameters, sequence[:, :-1]).hidden)
        errors = objectives.next_token_loss(logits, sequence[:, 1:]) + 0.5 * jnp.square(values - targets)
        total = jnp.sum(errors) / targets.size
        return total, {"loss": total}

    return learner.accumulate(loss, parameters, (tokens, targets), len(tokens), learner.Shards())[0]


gradient = jax.jit(gradient_of_one, static_argnums=0, compiler_options=OPTIMISED)


def errors(found, expected) -> dict[str, float]:
    """Norm of the difference over that of what is expected, for every array of a tree."""

    def error(one, other):
        assert one.dtype == other.dtype == jnp.float32
        one, other = (np.asarray(x, np.float64) for x in (one, other))
        return np.linalg.norm(one - other) / np.linalg.norm(other)

    paths, _ = jax.tree_util.tree_flatten_with_path(jax.tree.map(error, found, expected))
    return {jax.tree_util.keystr(path): value for path, value in paths}


@pytest.mark.parametrize("family", some(FAMILIES))
@pytest.mark.parametrize(
    "count", [16, pytest.param(128, marks=pytest.mark.long), pytest.param(512, marks=pytest.mark.slow)]
)
def test_every_gradient_in_bfloat16_is_that_of_float32(family, count):
    parameters, rows = parameters_of(family), shown(count)[2:]
    exact, rounded = (gradient(policy_of(family, compute_dtype=x), parameters, *rows) for x in ("float32", "bfloat16"))
    found = errors(rounded, exact)
    assert max(found.values()) < BOUND, found
    assert min(found.values()) > 1e-4  # it is not float32 after all


@pytest.mark.parametrize("family", some(FAMILIES))
def test_members_under_vmap_have_the_same_gradients_as_by_themselves(family):
    members = [parameters_of(family, member) for member in range(3)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *members)
    rows = shown(128)[2:]
    policy = policy_of(family, compute_dtype="bfloat16")
    mapped = jax.jit(jax.vmap(lambda parameters: gradient_of_one(policy, parameters, *rows)))(together)
    for index, parameters in enumerate(members):
        exact = gradient(policy_of(family), parameters, *rows)
        found = errors(jax.tree.map(lambda x, index=index: x[index], mapped), exact)
        assert max(found.values()) < BOUND, found


@pytest.mark.parametrize("family", some(FAMILIES))
def test_parameters_stored_in_bfloat16_have_gradients_in_float32(family):
    config = {"compute_dtype": "bfloat16", "parameter_dtype": "bfloat16"}
    stored = jax.tree.map(lambda x: x.astype(jnp.bfloat16), parameters_of(family))
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), stored)
    rows = shown(16)[2:]
    found = errors(gradient(policy_of(family, **config), stored, *rows), gradient(policy_of(family), exact, *rows))
    assert max(found.values()) < BOUND, found


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_rl_in_bfloat16_is_that_of_float32(family, key):
    config = dataclasses.replace(Config().rl, episodes=128, entropy_weight=0.1)
    (world, params, *_), parameters, exact = shown(128), parameters_of(family), policy_of(family)
    batch, _ = jax.jit(lambda: rl.collect(exact, world, config, params, parameters, key, 128, learner.Shards()))()
    share, norm = algorithms.shares(config, batch.decided)

    @functools.partial(jax.jit, static_argnums=0, compiler_options=OPTIMISED)
    def of(policy):
        loss = rl.loss_function(policy, world, config, norm, norm)
        return learner.accumulate(loss, parameters, (batch, share), 128, learner.Shards())[0]

    # Advantages of either sign cancel, so that what rounding leaves is a larger share.
    found = errors(of(policy_of(family, compute_dtype="bfloat16")), of(exact))
    assert max(found.values()) < 3 * BOUND, found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_embeddings_gradient_is_the_sum_over_its_tokens(dtype, key):
    """In both forms, of which a device takes one, and however often a token occurs."""
    tokens = jax.random.randint(key, (40, 50), 0, 3).at[0, 0].set(4)
    gradients = (1 + 0.01 * jax.random.normal(key, (40, 50, 7))).astype(dtype)
    expected = np.zeros((6, 7))
    np.add.at(expected, np.asarray(tokens), np.asarray(gradients, np.float64))
    scattered = jax.jit(lambda: kernels.rows_scattered(6, tokens, gradients))()
    multiplied = jax.jit(lambda: kernels.rows_multiplied(6, tokens, gradients, jax.lax.Precision.HIGHEST))()
    for total in (scattered, multiplied):
        assert total.dtype == jnp.float32
        np.testing.assert_allclose(total, expected, rtol=1e-5)
    by_table = jax.grad(
        lambda table: jnp.sum(kernels.embed(table, tokens, dtype, jax.lax.Precision.HIGHEST) * gradients)
    )(jnp.zeros((6, 7)))
    np.testing.assert_allclose(by_table, expected, rtol=1e-5)


def products(program, *arguments) -> list[tuple]:
    """The precision of every matrix product in a program, wherever it is nested."""

    def inside(value):
        jaxpr = getattr(value, "jaxpr", value)
        return of(jaxpr) if hasattr(jaxpr, "eqns") else []

    def of(jaxpr):
        found = []
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.append(equation.params["precision"])
            for value in equation.params.values():
                found += [
                    one for part in (value if isinstance(value, (tuple, list)) else [value]) for one in inside(part)
                ]
        return found

    return of(jax.make_jaxpr(program)(*arguments).jaxpr)


@pytest.mark.parametrize(("family", "name"), [("transformer", "float32"), ("gru", "float32"), ("gru", "device")])
def test_every_product_has_the_precision_of_the_config_and_not_of_the_surroundings(family, name):
    wanted = {"float32": jax.lax.Precision.HIGHEST, "device": jax.lax.Precision.DEFAULT}[name]
    config = tiny.changed(
        policy={"family": family, "matrix_precision": name, "layers": 2},
        rl={"staleness": 1, "imitation": "sft", "reference": "loss"}, sft={"episodes": 16},
    )  # fmt: skip
    for stage in (stages.make_stage(config, stage) for stage in ("pretrain", "rl")):
        state = jax.eval_shape(lambda stage=stage: stage.initial(None))
        with jax.default_matmul_precision("bfloat16"):
            found = products(stage.program.program, state, *stage.arguments)
        assert len(found) > 20
        assert set(found) == {(wanted, wanted)}


def test_what_changes_the_stream_is_multiplied_in_float32_too():
    policy, parameters = policy_of("transformer"), parameters_of("transformer")
    change = Intervention(ablation=jnp.zeros((3, 1, 16)))
    found = products(lambda: policy.forward(parameters, jnp.zeros((1, 5), jnp.int32), intervention=change).hidden)
    assert set(found) == {(jax.lax.Precision.HIGHEST,) * 2}
