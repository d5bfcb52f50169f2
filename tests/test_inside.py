"""Looking inside a transformer: all of it equals a forward in NumPy, and measurements say what they say they do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.policies import Intervention
from analysis import inside, interop, measures
from analysis.figures import defaults, panels
from analysis.inside import Patch
from analysis.measures.attention import GROUPS, RELATIONS, kind_of, relations
from analysis.measures.attribution import parts as attributed
from analysis.measures.patching import panels as patched
from analysis.measures.patching import parts_of, places, sites
from analysis.measures.probes import errors
from envs import tokens
from envs.labyrinth import LabyrinthOptions
from ground.terminal import ConfigError
from tests import reference_transformer, tiny, untrained
from tests.thrift import some

EPISODES = 8


def make(folder, **policy):
    policy = {"layers": 2, "width": 24, "heads": 3, "hidden": 40} | policy
    world = LabyrinthOptions(size=5, turns=3, plan_length=3)
    config = tiny.changed(world=world, policy=policy, pretrain={"shared": False}, population={"seeds": 2})
    return untrained.write(folder, config, scale=1.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "run", lookback=2)


@pytest.fixture(scope="module")
def gru(tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "gru", family="gru", hidden=12)


@pytest.fixture(scope="module")
def one(run):
    """Parameters of a member, another's, and episodes of the first."""
    own, other = (jax.tree.map(lambda x, row=row: x[row], run.kept_parameters("rl")) for row in (0, 1))
    params = jax.tree.map(lambda x: x[0], run.params)
    return own, other, inside.played(run.policy, own, run.world, params, EPISODES)


def reference(run, parameters, sequences):
    """Everything by name, axis 0 the sequence."""
    config = run.policy.config
    weights = interop.hooked_weights(run.policy, parameters)
    told = reference_transformer.forward(weights, config.layers, config.lookback, np.asarray(sequences))
    told |= {name: np.swapaxes(told[name], 2, 3) for name in ("mixed", "heads")}
    return {name: np.moveaxis(x, 1, 0) if name not in ("logits", "values") else x for name, x in told.items()}


def reading(run, parameters, sequences, names=()):
    policy = run.policy
    read = jax.vmap(lambda parameters, x: inside.read(policy, parameters, x, names=names), in_axes=(None, 0))
    return jax.jit(read)(parameters, sequences)


@pytest.mark.slow
@pytest.mark.parametrize("lookback", [0, 2])
def test_everything_is_as_in_numpy(run, one, lookback, tmp_path):
    parameters, _, seen = one
    run = run if lookback else make(tmp_path / "plain")
    told, wanted = reading(run, parameters, seen.tokens), reference(run, parameters, seen.tokens)
    assert {*told} == {*inside.AXES}
    assert {*told} == {*wanted}
    for name, array in told.items():
        assert array.shape == wanted[name].shape, name
        np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=3e-5, err_msg=name)
    logits, _ = run.policy.heads(parameters, run.policy.forward(parameters, seen.tokens).hidden)
    np.testing.assert_allclose(told["logits"], logits, rtol=0, atol=3e-5)


@pytest.mark.parametrize("name", some(inside.PATCHABLE, 2))
def test_what_is_replaced_by_itself_changes_nothing(run, one, name):
    parameters, _, seen = one
    sequence = seen.tokens[0]
    plain = inside.read(run.policy, parameters, sequence, names=(name, "logits"))
    where = jnp.ones(plain[name].shape, bool)
    again = inside.read(run.policy, parameters, sequence, Patch({name: plain[name]}, {name: where}), ("logits",))
    np.testing.assert_allclose(again["logits"], plain["logits"], atol=1e-5)
    zero = Patch({name: jnp.zeros_like(plain[name])}, {name: where})
    changed = inside.read(run.policy, parameters, sequence, zero, names=(name, "logits"))
    assert not np.any(changed[name])
    assert np.abs(changed["logits"] - plain["logits"]).max() > 1e-3


def test_patching_everything_gives_the_other_run(run, one):
    parameters, other, seen = one
    names = ("stream", "heads", "mlp", "logits")
    given = inside.read(run.policy, other, seen.tokens[1], names=names)
    wanted = given.pop("logits")
    everything = {name: jnp.ones(x.shape, bool) for name, x in given.items()}
    last = everything["stream"].at[-1].set(False)
    for where in (everything, everything | {"stream": last}):
        told = inside.read(run.policy, parameters, seen.tokens[0], Patch(given, where), names=("stream",))
        logits, _ = inside.predictions(other, told["stream"][-1])
        np.testing.assert_allclose(logits, wanted, atol=2e-5)


def test_the_stream_is_replaced_as_the_policy_itself_replaces_it(run, one):
    parameters, other, seen = one
    sequences = seen.tokens[:2]
    source = run.policy.forward(other, sequences, capture=np.arange(sequences.shape[1])).residual
    where = jax.random.bernoulli(jax.random.key(1), 0.2, (3, 1, *source.shape[1:3], 1))

    def spelt_out(where):
        stream, there = (jnp.moveaxis(x, 2, 1) for x in (source, where))

        def patched(sequence, values):
            patch = Patch({"stream": values}, {"stream": there[0]})
            return inside.read(run.policy, parameters, sequence, patch, ("logits",))["logits"]

        return jax.vmap(patched)(sequences, stream)

    def directly(where):
        change = Intervention(replacement=source, where=where)
        return run.policy.heads(parameters, run.policy.forward(parameters, sequences, intervention=change).hidden)[0]

    told, wanted = (jax.jit(jax.vmap(function))(where) for function in (directly, spelt_out))
    np.testing.assert_allclose(told, wanted, atol=3e-5)
    assert np.abs(np.diff(told, axis=0)).max() > 0.1


def test_names_that_there_are_not_and_other_families(run, one):
    parameters, _, seen = one
    with pytest.raises(ValueError, match="keys: no such name; use stream, pattern"):
        inside.read(run.policy, parameters, seen.tokens[0], names=("keys",))
    with pytest.raises(ValueError, match=r"logits: no such name; .* replace stream"):
        inside.read(run.policy, parameters, seen.tokens[0], Patch({"logits": jnp.zeros(1)}, {}))


@pytest.mark.slow
def test_a_gru_is_refused_in_one_line(gru):
    for measurement in (measures.attention, measures.lens, measures.attribution):
        with pytest.raises(ConfigError, match=r"its policy is a gru, .*; give a run with --policy.family transformer"):
            measurement(gru)
    assert np.isfinite(measures.probes(gru, episodes=8)["error"].sel(target="planner")).all()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("attention", {"episodes": 65}, "--episodes=65: use 2 to 64, or a multiple of 64"),
        ("patching", {"decision": 99}, "--decision=99: an episode has 6 choices; use 0 to 5"),
        ("patching", {"source": "both"}, "--source=both: use episode, checkpoint"),
        ("probes", {"episodes": 5}, "--episodes=5: use an even number"),
        ("probes", {"ridge": 0.0}, "--ridge=0: use a number above 0"),
    ],
)
def test_bad_options(run, name, options, words):
    with pytest.raises(ConfigError, match=words):
        getattr(measures, name)(run, **options)


def test_activations_of_all_members(run, one):
    parameters, _, seen = one
    told = inside.activations(run, "rl", ["pattern", "hidden"], EPISODES)
    assert [*told["pattern"].dims] == ["member", "episode", "layer", "head", "query", "key"]
    np.testing.assert_array_equal(told["tokens"][0], seen.tokens)
    wanted = reading(run, parameters, seen.tokens, names=("hidden",))["hidden"]
    np.testing.assert_allclose(told["hidden"][0], wanted, rtol=1e-4, atol=1e-5)


def test_relations_are_what_they_are_called():
    sequence = np.array([3, 1, 2, 3, 1, 4, 2, 3, 1])
    told = dict(zip(RELATIONS, np.asarray(relations(jnp.asarray(sequence))), strict=True))
    for query, key in itertools.product(range(len(sequence)), repeat=2):
        before = key < query
        wanted = {
            "itself": key == query,
            "previous": key == query - 1,
            "first": before and key == 0,
            "same token": before and sequence[key] == sequence[query],
            "after same token": before and key >= 1 and sequence[key - 1] == sequence[query],
            "after same pair": before
            and key >= 2
            and sequence[key - 1] == sequence[query]
            and sequence[key - 2] == sequence[query - 1],
        }
        assert {name: bool(x[query, key]) for name, x in told.items()} == wanted, (query, key)


def test_every_token_has_a_kind(run):
    everything = [token for group in GROUPS.values() for token in group]
    assert sorted({*everything}) == [*range(tokens.SIZE)]
    assert len(everything) == tokens.SIZE
    episode = jnp.full(run.world.episode_length(), tokens.MOVES[1])
    move = [*GROUPS].index("move")
    kinds = np.asarray(kind_of(run.world, episode)) - move
    bounds = np.cumsum([run.world.prompt_length, run.world.opening_length])
    assert [*np.flatnonzero(np.diff(kinds)) + 1] == [*bounds]
    assert {*kinds.tolist()} == {0, len(GROUPS), 2 * len(GROUPS)}


@pytest.mark.slow
def test_attention_is_that_of_the_patterns(run, one):
    parameters, _, seen = one
    told = measures.attention(run, ["rl"], episodes=EPISODES).isel(checkpoint=0, member=0)
    np.testing.assert_allclose(told["to_kind"].sum("kind"), 1, rtol=1e-5)
    sequences = np.asarray(seen.tokens[:, :-1])
    patterns = reference(run, parameters, sequences)["pattern"].reshape(EPISODES, 6, *[sequences.shape[1]] * 2)
    related = np.stack([relations(jnp.asarray(x)) for x in sequences])
    at, decided = run.world.decision_positions() - 1, np.asarray(seen.decided)
    shares, uniform = [], []
    for relation in range(len(RELATIONS)):
        rows = [
            (patterns[i, :, q] @ related[i, relation, q], related[i, relation, q].sum() / (q + 1))
            for i, j in np.argwhere(decided)
            if related[i, relation, q := at[j]].any()
        ]
        shares.append(np.mean([share for share, _ in rows], axis=0) if rows else np.full(6, np.nan))
        uniform.append(np.mean([share for _, share in rows]) if rows else np.nan)
    np.testing.assert_allclose(told["at_choices"], np.stack(shares, axis=1), atol=1e-5)
    np.testing.assert_allclose(told["uniform"], uniform, atol=1e-6)
    np.testing.assert_allclose(told["strongest"], np.stack(shares).max(axis=1), atol=1e-5)
    assert measures.attention.panels
    assert len(measures.attention.panels({"run": measures.attention(run, episodes=EPISODES)})) >= 5


@pytest.mark.slow
def test_checkpoints_that_say_different_kinds_of_words_stand_beside_each_other(tmp_path):
    run = make(tmp_path / "run")
    silent = jax.tree.map(np.zeros_like, run.parameters("rl")) | {"norm": run.parameters("rl")["norm"]}
    silent["embedding"]["embedding"][:, :, 0] = 1.0
    silent["embedding"]["embedding"][:, tokens.PLAN_END, 0] = 5.0
    run.save_parameters("rl", silent)
    told = measures.attention(run, episodes=4)["to_kind"].sel(kind="opening move").max(("member", "head"))
    assert told.sel(checkpoint="pretrain") > 0
    assert told.sel(checkpoint="rl") == 0


@pytest.mark.slow
def test_the_lens_at_the_last_block_is_the_policy(run):
    told = measures.lens(run, episodes=EPISODES)
    assert told["place"].values.tolist() == ["opening", "move"]
    last = told.isel(entry=-1)
    np.testing.assert_allclose(last["kl"], 0, atol=1e-6)
    np.testing.assert_array_equal(last["agreement"], 1)
    assert (told["kl"].isel(entry=0) > 1e-3).all()
    assert (told["probability"] > 0).all()


@pytest.mark.slow
def test_the_lens_in_numpy(run, one):
    parameters, _, seen = one
    sequences, at = np.asarray(seen.tokens[:, :-1]), run.world.decision_positions() - 1
    stream = reference(run, parameters, sequences)["stream"][:, :, at]
    weights = interop.hooked_weights(run.policy, parameters)
    logits = reference_transformer.normalised(stream, weights["ln_final.w"]) @ weights["unembed.W_U"]
    moves = logits[:, :, run.world.opening_length :, tokens.MOVES[0] : tokens.MOVES[0] + 4]
    log = moves - np.log(np.exp(moves).sum(axis=-1, keepdims=True))
    kl = (np.exp(log[:, -1:]) * (log[:, -1:] - log)).sum(axis=-1)
    wanted = (kl * np.asarray(seen.played)[:, None]).sum(axis=(0, 2)) / np.asarray(seen.played).sum()
    told = measures.lens(run, ["rl"], episodes=EPISODES).isel(checkpoint=0, member=0)
    np.testing.assert_allclose(told["kl"].sel(place="move"), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_attributions_add_up_to_the_logit(run, one):
    parameters, _, seen = one
    told = measures.attribution(run, episodes=EPISODES)
    np.testing.assert_allclose(told["contribution"].sum("component"), told["logit"], rtol=1e-4)
    assert (told["logit"] > 0.05).all()
    at, allowed = run.world.decision_positions() - 1, inside.choices(run.policy, run.world)
    parts, logits = attributed(run.policy, parameters, seen.tokens[0], at, jnp.asarray(allowed))
    np.testing.assert_allclose(np.sum(parts, axis=1), logits, atol=1e-5)
    whole = reference(run, parameters, seen.tokens[:1])
    for place, may in zip(at, allowed, strict=True):
        own = whole["logits"][0, place][may]
        row = [*at].index(place)
        np.testing.assert_allclose(logits[row], own.max() - own.mean(), atol=3e-5)
        table = interop.hooked_weights(run.policy, parameters)["unembed.W_U"].T[may]
        way = (table[own.argmax()] - table.mean(axis=0)) * parameters["norm"]["scale"]
        scale = np.sqrt((whole["stream"][0, -1, place] ** 2).mean() + 1e-6)
        np.testing.assert_allclose(parts[row, 1], whole["heads"][0, 0, 0, place] @ way / scale, atol=3e-5)
        np.testing.assert_allclose(parts[row, -1], whole["mlp"][0, 1, place] @ way / scale, atol=3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["run", "gru"])
def test_patching_carries_all_or_nothing_where_it_must(family, request):
    told = measures.patching(request.getfixturevalue(family), ["rl"], episodes=32).isel(checkpoint=0)
    assert (told["pairs"] > 0).all()
    assert told["part"].values.tolist() == ["prompt", "opening", "this turn", "last token", "all"]
    np.testing.assert_allclose(told["stream"].sel(part="all"), 1, atol=1e-4)
    end = told["stream"].isel(entry=-1)
    np.testing.assert_allclose(end.sel(part="last token"), 1, atol=1e-4)
    np.testing.assert_allclose(end.sel(part=["prompt", "opening", "this turn"]), 0, atol=1e-4)
    if family == "gru":
        assert "written" not in told
        assert np.abs(told["stream"].sel(part="prompt")).max() > 0.01
        assert len(patched({"gru": told})) == 1
        return
    last = told["written"].sel(where="before", component=[f"block 2 head {n}" for n in (1, 2, 3)])
    np.testing.assert_allclose(last, 0, atol=1e-4)  # nobody reads any more what the last block writes there
    assert np.abs(told["written"]).max() > 0.01


@pytest.mark.slow
def test_patching_from_what_training_set_out_from(run):
    told = measures.patching(run, source="checkpoint", episodes=32)
    assert told["checkpoint"].values.tolist() == ["pretrain", "rl"]
    assert told["pairs"].isel(checkpoint=0).values.tolist() == [0, 0]
    assert np.isnan(told["stream"].isel(checkpoint=0)).all()
    after = told.isel(checkpoint=1)
    assert (after["pairs"] > 0).all()
    # All that goes in is carried, up to the norm and the embedding that come after.
    assert (np.abs(after["stream"].sel(entry=0, part="all")) < 50).all()


def test_one_part_is_patched_at_a_time(run):
    parts = parts_of(run.world, run.world.opening_length + 1)
    np.testing.assert_array_equal(parts[:-1].sum(axis=0), 1)
    assert parts[-1].all()
    stream = places(run.policy, parts)
    assert stream.shape == (3 * len(parts), 1, parts.shape[1], 3, 1)
    np.testing.assert_array_equal(stream[len(parts) + 2, 0, :, 1, 0], parts[2])
    np.testing.assert_array_equal(stream.sum(axis=(1, 2, 3, 4)).reshape(3, -1), [parts.sum(axis=1)] * 3)
    where, size = sites(run.policy, parts.shape[1]), 2 * 6 + 2 * 2
    assert {len(x) for x in where.values()} == {size}
    touched = np.stack([x.reshape(size, -1).any(axis=1) for x in where.values()])
    np.testing.assert_array_equal(touched.sum(axis=0), 1)
    head = where["heads"][2 * 4 + 1]
    assert np.argwhere(head[..., 0]).tolist() == [[1, 1, parts.shape[1] - 1]]


def test_a_planted_direction_is_found_by_the_probe(key):
    rows, width = 600, 12
    noise, way, target_key, deal = jax.random.split(key, 4)
    targets = jax.random.normal(target_key, (rows, 2))
    features = jax.random.normal(noise, (rows, width)) + 5 * targets @ jax.random.normal(way, (2, width))
    counted, fitted = jnp.arange(rows) % 7 > 0, jnp.arange(rows) < rows // 2
    error, told = errors(features, targets, counted, fitted, 1e-3)
    assert (error < 0.1).all()
    shuffled, _ = errors(features, jax.random.permutation(deal, targets), counted, fitted, 1e-3)
    assert ((shuffled > 0.9) & (shuffled < 1.3)).all()
    train, test = np.asarray(counted & fitted), np.asarray(counted & ~fitted)
    x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    x = (x - x[train].mean(axis=0)) / x[train].std(axis=0)
    gram = x[train].T @ x[train] / train.sum() + 1e-3 * np.eye(width)
    weights = np.linalg.solve(gram, x[train].T @ (y[train] - y[train].mean(axis=0)) / train.sum())
    guess = x @ weights + y[train].mean(axis=0)
    np.testing.assert_allclose(told, guess, atol=1e-3)
    left = ((y - guess) ** 2)[test].sum(axis=0) / ((y - y[train].mean(axis=0)) ** 2)[test].sum(axis=0)
    np.testing.assert_allclose(error, left, rtol=1e-2)
    assert np.isnan(errors(features, jnp.ones((rows, 1)), counted, fitted, 1e-3)[0]).all()


@pytest.mark.slow
def test_probes_of_a_policy(run):
    told = measures.probes(run, ["rl"], episodes=64).isel(checkpoint=0)
    assert told["target"].values.tolist() == ["planner", "walls", "return", "distance", "place"]
    assert (told["hits"] >= 0).all()
    own = told["error"].sel(labels="own")
    assert (own.sel(target="walls").isel(entry=-1) < told["error"].sel(target="walls", labels="another's").max()).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "lens", "attribution", "patching", "probes"])
def test_figures_draw_in_a_world_whose_first_decision_is_a_move(name, run, tmp_path):
    """Nothing is said before the first observation there; beside a run of another world, too."""
    config = tiny.changed(policy={"layers": 2, "width": 24, "heads": 3, "hidden": 40}, population={"seeds": 1})
    measurement = getattr(measures, name)
    assert not config.world.make()[0].opening_length
    told = measurement(untrained.write(tmp_path / "run", config, scale=1.5), episodes=EPISODES)
    for arms in ({"run": told}, {"run": told, "other": measurement(run, episodes=EPISODES)}):
        shown = list((measurement.panels or defaults.panels)(arms))
        assert shown
        panels.draw(shown, width=5.5, title="", meaning="", footer="", plain=True)
