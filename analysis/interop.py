"""A policy for other tools: one member's weights as TransformerLens, safetensors or PyTorch read them, or a small run.

    uv run -m analysis export RUN --to transformer-lens [--member N] [--checkpoint NAME] [--into FOLDER]

The folder that is written stands by itself: `config.json` tells what the weights are of, and for TransformerLens
`load.py`, a copy of `analysis/hooked.py`, makes a `HookedTransformer` of them. Everything is float32.
"""

import dataclasses
import functools
import importlib
import io
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console

from agents import runs
from agents.learning import rollout
from agents.policies import Parameters, Policy
from agents.runs import Run, excerpt, reporting
from analysis.measure import LIMIT, ends
from envs import base, tokens
from ground import files, seeds
from ground.terminal import ConfigError

Format = Literal["transformer-lens", "safetensors", "torch", "run"]


@dataclasses.dataclass(frozen=True)
class Export:
    """Write one member's weights for another tool."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    to: Format = "transformer-lens"
    """`transformer-lens`: a folder that loads as a HookedTransformer. `safetensors`, `torch`: the weights under our own
    names, the second as a state dict that `torch.load` reads with `weights_only=True`. `run`: a run directory of this
    member and checkpoint alone, small enough to give to others."""
    member: int | None = None
    """Which member; by default the first that has not diverged."""
    checkpoint: str | None = None
    """Which checkpoint; by default the last."""
    episodes: int = 64
    """Episodes of the member, with our logits for them, that are written for TransformerLens."""
    into: Path | None = None
    """Folder to write; by default one in the run's `exports/`."""


def command(options: Export, console: Console) -> None:
    """Export, and say what was written."""
    run = runs.open(options.run)
    written = export(run, options.to, options.member, options.checkpoint, options.episodes, options.into)
    reporting.written(console, written, run.caption)


def export(
    run: Run,
    to: Format = "transformer-lens",
    member: int | None = None,
    checkpoint: str | None = None,
    episodes: int = 64,
    into: Path | None = None,
) -> list[Path]:
    """Write a folder for another tool; arguments as the options of `Export`. Returns the files.

    Raises:
        ConfigError: an option is at fault, the policy is none that the tool knows, or a package is missing.
        RunError: the run or the disk is.
    """
    member = int(run.kept[0]) if member is None else member
    checkpoint = ends(run)[-1] if checkpoint is None else checkpoint
    if member not in run.kept:
        raise ConfigError(f"--member={member}: the run has {', '.join(map(str, run.kept))} that have not diverged")
    if not 1 <= episodes <= LIMIT:
        raise ConfigError(f"--episodes={episodes}: use 1 to {LIMIT}")
    if to == "transformer-lens" and run.policy.config.family != "transformer":
        raise ConfigError(
            f"--to={to}: it knows transformers alone, and the run's policy is a {run.policy.config.family}; "
            "use --to safetensors or torch"
        )
    if into and not into.name:
        raise ConfigError(f"--into={into}: no folder's own name; name one that is empty or not there yet")
    folder = into or run.path / "exports" / f"{to}-{checkpoint}-{member}"
    if to == "run":
        return [excerpt.write(run, member, checkpoint, folder).path]
    if files.others(folder) and not files.holds(folder / "config.json", {"of", "policy"}):
        raise ConfigError(f"--into={folder}: holds something else than an export; name an empty folder, or a new one")
    place = int(np.flatnonzero(run.kept == member)[0])
    parameters = jax.tree.map(lambda x: np.asarray(x[place], np.float32), run.kept_parameters(checkpoint))
    about: dict[str, Any] = {
        "of": f"{run.path.name}, config {run.config_hash}, {run.name_of(member)}, checkpoint {checkpoint}",
        "policy": dataclasses.asdict(run.policy.config),
        "vocabulary": tokens.VOCABULARY[: run.policy.vocabulary],
    }
    if to == "torch":
        content = {"model.pt": _torch(flat(parameters))}
    elif to == "safetensors":
        content = {"model.safetensors": _safetensors(flat(parameters))}
    else:
        about |= {"hooked": hooked_config(run.policy, run.world), "lookback": run.policy.config.lookback}
        params = jax.tree.map(lambda x: x[place], run.params)
        played = _played(run.policy, parameters, run.world, params, episodes)
        content = {
            "model.safetensors": _safetensors(hooked_weights(run.policy, parameters)),
            "episodes.safetensors": _safetensors(jax.tree.map(np.asarray, played)),
            "load.py": Path(__file__).with_name("hooked.py").read_bytes(),
        }
    with files.reporting(folder, "make"):
        folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(files.plain(about, "config"), indent=1, ensure_ascii=False) + "\n"
    content = {"config.json": text.encode(), **content}
    for name, data in content.items():
        files.write(folder / name, data)
    return [folder / name for name in content]


def flat(parameters: Parameters) -> dict[str, np.ndarray]:
    """Arrays by their names in our tree, dots between: those of the blocks have the block as axis 0."""
    leaves = jax.tree_util.tree_flatten_with_path(parameters)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def hooked_config(policy: Policy, world: base.World) -> dict[str, Any]:
    """The arguments of `HookedTransformerConfig`; its `relu` is to be squared."""
    config = policy.config
    return {
        "n_layers": config.layers,
        "d_model": config.width,
        "d_head": config.width // config.heads,
        "n_heads": config.heads,
        "d_mlp": config.hidden,
        "n_ctx": world.episode_length(),
        "d_vocab": policy.vocabulary,
        "act_fn": "relu",
        "normalization_type": "RMS",
        "eps": 1e-6,
        "positional_embedding_type": "rotary",
        "rotary_dim": config.width // config.heads,
        "default_prepend_bos": False,
        "init_weights": False,
    }


def hooked_weights(policy: Policy, parameters: Parameters) -> dict[str, np.ndarray]:
    """The weights of one member by the names of a `HookedTransformer`, and `value`, the head's, [width].

    The embedding is larger by √width going in than coming out, so that the two are apart here.
    """
    config, blocks = policy.config, parameters["blocks"]
    table, heads = parameters["embedding"]["embedding"], config.heads
    weights = {
        "embed.W_E": table * np.float32(config.width**0.5),
        "unembed.W_U": table.T,
        "ln_final.w": parameters["norm"]["scale"],
        "value": parameters["value"]["kernel"][:, 0],
    }
    for layer in range(config.layers):
        own = jax.tree.map(lambda x, layer=layer: x[layer], blocks)
        # [width, 3 × heads × D] → [3, heads, width, D]
        query, key, value = own["attention"]["qkv"]["kernel"].reshape(config.width, 3, heads, -1).transpose(1, 2, 0, 3)
        weights |= {
            f"blocks.{layer}.{name}": array
            for name, array in {
                "ln1.w": own["attention_norm"]["scale"],
                "attn.W_Q": query,
                "attn.W_K": key,
                "attn.W_V": value,
                "attn.W_O": own["attention"]["out"]["kernel"].reshape(heads, -1, config.width),
                "ln2.w": own["mlp_norm"]["scale"],
                "mlp.W_in": own["up"]["kernel"],
                "mlp.W_out": own["down"]["kernel"],
            }.items()
        }
    return weights


@functools.partial(jax.jit, static_argnames=("policy", "world", "episodes"))
def _played(
    policy: Policy, parameters: Parameters, world: base.World, params: base.WorldParams, episodes: int
) -> dict[str, jax.Array]:
    """Episodes of the member, and what it makes of them at every position where all is float32."""
    key = seeds.held_out("inside")
    said = rollout.policy_episodes(policy, parameters, world, params, key, episodes).tokens
    reader = dataclasses.replace(policy.config, compute_dtype="float32", matrix_precision="float32")
    reader = dataclasses.replace(policy, config=reader)
    logits, values = reader.heads(parameters, reader.forward(parameters, said).hidden)
    return {"tokens": said, "logits": logits, "values": values}


def _safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return _package("safetensors.numpy", "safetensors").save(contiguous, {"format": "pt"})


def _torch(arrays: dict[str, np.ndarray]) -> bytes:
    torch, file = _package("torch", "torch"), io.BytesIO()
    torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, file)
    return file.getvalue()


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        remedy = f"uv pip install {package} && uv run --no-sync -m analysis export …"
        raise ConfigError(f"--to: it needs the package {package}; {remedy}") from None
