"""What is exported is the policy: by a forward in NumPy, and where it is installed by TransformerLens itself."""

import importlib.util
import io
import json
import sys

import jax
import numpy as np
import pytest

from analysis import __main__ as command
from analysis import inside, interop
from tests import reference_transformer, tiny, untrained
from tests.test_runs import snapshot


def make(folder, **policy):
    policy = {"layers": 2, "width": 24, "heads": 3, "hidden": 40} | policy
    config = tiny.changed(policy=policy, pretrain={"shared": False}, population={"seeds": 2})
    run = untrained.write(folder, config, scale=1.5)
    tree = run.parameters("rl")
    kernel = np.random.default_rng(0).normal(size=tree["value"]["kernel"].shape)  # zeros where nothing was learnt
    run.save_parameters("rl", tree | {"value": {"kernel": kernel.astype(np.float32)}})
    return run


@pytest.fixture(scope="module", params=[0, 2], ids=["plain", "looking back"])
def run(request, tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "run", lookback=request.param)


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "gru", family="gru", hidden=12)


def said(capsys, *arguments, status=0):
    assert command.main(["export", *map(str, arguments)]) == status
    out, err = capsys.readouterr()
    return err if status else out


def test_the_folder_holds_the_policy_and_what_it_says(run, tmp_path):
    from safetensors.numpy import load_file

    written = interop.export(run, member=1, checkpoint="sft" if run.config.sft.updates else "rl", episodes=5)
    assert [path.name for path in written] == ["config.json", "model.safetensors", "episodes.safetensors", "load.py"]
    about = json.loads(written[0].read_text())
    assert about["of"].startswith("run, config")
    assert "member 1 (seed 1)" in about["of"]
    assert about["vocabulary"][:2] == ["👤", "🐵"]
    assert len(about["vocabulary"]) == run.policy.vocabulary
    told = load_file(written[2])
    assert told["tokens"].shape == (5, run.world.episode_length())
    config = run.policy.config
    found = reference_transformer.forward(load_file(written[1]), config.layers, config.lookback, told["tokens"])
    np.testing.assert_allclose(found["logits"], told["logits"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(found["values"], told["values"], rtol=0, atol=2e-5)
    parameters = jax.tree.map(lambda x: x[1], run.kept_parameters("rl"))
    logits, _ = run.policy.heads(parameters, run.policy.forward(parameters, told["tokens"]).hidden)
    np.testing.assert_allclose(told["logits"], logits, rtol=0, atol=1e-5)
    assert np.std(told["logits"]) > 0.3
    assert np.std(told["values"]) > 0.3


def test_what_computes_in_bfloat16_is_written_as_it_is_in_float32(tmp_path):
    from safetensors.numpy import load_file

    low = make(tmp_path / "run", compute_dtype="bfloat16", matrix_precision="device")
    written = interop.export(low, member=1, episodes=5)
    told, config = load_file(written[2]), low.policy.config
    found = reference_transformer.forward(load_file(written[1]), config.layers, config.lookback, told["tokens"])
    for name in ("logits", "values"):
        np.testing.assert_allclose(found[name], told[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["transformer", "gru"])
def test_weights_under_our_own_names(family, run, recurrent, tmp_path, capsys):
    from safetensors.numpy import load_file

    one = run if family == "transformer" else recurrent
    out = said(capsys, one.path, "--to", "safetensors", "--checkpoint", "init", "--into", tmp_path / "there")
    assert str(tmp_path / "there" / "model.safetensors") in out
    told = load_file(tmp_path / "there" / "model.safetensors")
    stored = one.kept_parameters("init")
    assert len(told) == len(jax.tree.leaves(stored))
    np.testing.assert_array_equal(told["embedding.embedding"], stored["embedding"]["embedding"][0])
    assert json.loads((tmp_path / "there" / "config.json").read_text())["policy"]["family"] == family


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--member", 7], "--member=7: the run has 0, 1"),
        (["--checkpoint", "best"], "no checkpoint 'best'; there are init"),
        (["--episodes", 0], "--episodes=0: use 1 to"),
        (["--to", "onnx"], "choose one of transformer-lens, safetensors, torch"),
    ],
)
def test_bad_input_ends_in_one_line(run, capsys, arguments, words):
    text = said(capsys, run.path, *arguments, status=2)
    assert text.count("\n") == 1
    assert words in text


def test_what_is_no_export_is_left_alone(recurrent, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.json").write_text('{"mine": 1}')
    (tmp_path / "file").touch()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "thesis.partial").touch()
    for into in (recurrent.path, tmp_path / "thesis", tmp_path / "unfinished", tmp_path / "file", ""):
        before = snapshot(recurrent.path) | snapshot(tmp_path)
        text = said(capsys, recurrent.path, "--to", "torch", "--into", into, status=2)
        assert text.count("\n") == 1
        assert str(into) in text
        assert snapshot(recurrent.path) | snapshot(tmp_path) == before
    for member in (0, 1):  # an earlier export is replaced
        said(capsys, recurrent.path, "--to", "safetensors", "--member", member, "--into", tmp_path / "there")
        assert f"member {member}" in json.loads((tmp_path / "there" / "config.json").read_text())["of"]


def test_a_gru_is_refused(recurrent, capsys):
    text = said(capsys, recurrent.path, status=2)
    assert text.count("\n") == 1
    assert "the run's policy is a gru; use --to safetensors or torch" in text


@pytest.mark.parametrize("to", ["safetensors", "torch"])
def test_what_is_not_installed_is_named(to, recurrent, capsys, monkeypatch):
    for name in ("torch", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    text = said(capsys, recurrent.path, "--to", to, status=2)
    assert text.count("\n") == 1
    assert f"uv pip install {to}" in text


def test_a_state_dict_that_needs_no_trust(run):
    torch = pytest.importorskip("torch")
    written = interop.export(run, to="torch", member=0)
    told = torch.load(io.BytesIO(written[1].read_bytes()), weights_only=True)
    stored = interop.flat(jax.tree.map(lambda x: x[0], run.kept_parameters("rl")))
    assert told.keys() == stored.keys()
    assert all(np.array_equal(told[name].numpy(), stored[name]) for name in told)


def loaded(folder):
    """The module that was written beside the weights."""
    spec = importlib.util.spec_from_file_location("exported", folder / "load.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_transformer_lens_says_the_same(run):
    pytest.importorskip("transformer_lens")
    torch = pytest.importorskip("torch")
    folder = interop.export(run, member=1, episodes=1000)[0].parent
    load = loaded(folder)
    assert len(load.episodes()["tokens"]) == 1000
    off = load.differences()
    print(off)
    assert off["logits"] < 1e-4
    assert off["values"] < 1e-4
    model = load.model()
    tokens = load.episodes()["tokens"][:4]
    if run.policy.config.lookback:
        with pytest.raises(ValueError, match="read whole episodes, without past_kv_cache"):
            model(tokens, past_kv_cache=object())
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
        stream = model(cache["hook_embed"], start_at_layer=0)
    torch.testing.assert_close(stream, logits)
    parameters = jax.tree.map(lambda x: x[1], run.kept_parameters("rl"))
    told = jax.vmap(lambda sequence: inside.read(run.policy, parameters, sequence))(tokens.numpy().astype(np.int32))
    for name, hook in (("pattern", "attn.hook_pattern"), ("hidden", "mlp.hook_post"), ("mlp", "hook_mlp_out")):
        theirs = np.stack([cache[f"blocks.{layer}.{hook}"].numpy() for layer in range(2)], axis=1)
        np.testing.assert_allclose(told[name], theirs, rtol=1e-4, atol=1e-4, err_msg=name)
    mixed = np.stack([cache[f"blocks.{layer}.attn.hook_z"].numpy() for layer in range(2)], axis=1)
    np.testing.assert_allclose(np.swapaxes(told["mixed"], 2, 3), mixed, rtol=1e-4, atol=1e-4)
    stream = [cache["blocks.0.hook_resid_pre"], *(cache[f"blocks.{layer}.hook_resid_post"] for layer in range(2))]
    np.testing.assert_allclose(told["stream"], np.stack(stream, axis=1), rtol=1e-4, atol=1e-4)
