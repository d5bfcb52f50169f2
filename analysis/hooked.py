"""An exported policy as a `HookedTransformer` of TransformerLens; needs nothing of emojimaze.

It is written beside the weights as `load.py`, with `uv pip install torch transformer-lens safetensors`:

- `python load.py` holds its logits beside those that emojimaze gave for the same episodes;
- `model, tokens = load.model(), load.episodes()["tokens"]`, then `logits, cache = model.run_with_cache(tokens)`;
- `load.values(model, cache)` is what the value head says.
"""

import json
from pathlib import Path

import torch  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).resolve().parent
"""The folder of the export."""


class LookingBack(torch.nn.Module):
    """An embedding that tells of the tokens before, too (token shift): half of the features are the token's own.

    It stands in place of `HookedTransformer.embed`, which has nothing of the kind.

    Args:
        table: the embedding [d_vocab, d_model].
        count: tokens that it looks back.
    """

    def __init__(self, table: torch.nn.Parameter, count: int):
        super().__init__()
        self.W_E, self.count = table, count

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [batch, pos] to [batch, pos, d_model]."""
        width, length = self.W_E.shape[1], tokens.shape[1]
        every = torch.nn.functional.pad(self.W_E[tokens], (0, 0, self.count, 0))
        bounds = [0, *range(width // 2, width + 1, width // (2 * self.count))]
        parts = [
            every[:, self.count - back :][:, :length, bounds[back] : bounds[back + 1]] for back in range(self.count + 1)
        ]
        return torch.cat(parts, dim=2)


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """The activation of the MLPs, which TransformerLens has no name for."""
    return torch.relu(x).square()


def model(folder: str | Path = HERE, device: str = "cpu") -> HookedTransformer:
    """The policy; its value head is `model.value`, weights [d_model], see `values`."""
    about = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    weights = load_file(str(Path(folder) / "model.safetensors"))
    hooked = HookedTransformer(HookedTransformerConfig(**about["hooked"], device=device))
    value = weights.pop("value")
    absent, unknown = hooked.load_state_dict(weights, strict=False)
    fixed = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U", "mask", "IGNORE", "rotary_sin", "rotary_cos")
    wrong = [*unknown, *(name for name in absent if name.rpartition(".")[2] not in fixed)]
    if wrong:
        raise ValueError(f"{folder}: {', '.join(wrong)} fit this TransformerLens badly; use a release 2 of it")
    for block in hooked.blocks:
        block.mlp.act_fn = squared_relu
    if about["lookback"]:
        hooked.embed = LookingBack(hooked.embed.W_E, about["lookback"])
        hooked.register_forward_pre_hook(_without_cache, with_kwargs=True)
    hooked.register_buffer("value", value.to(device), persistent=False)
    return hooked.eval()


def _without_cache(hooked, positional, named):
    """A cache of keys and values holds no tokens, and these embeddings need those before."""
    if named.get("past_kv_cache") is not None:
        raise ValueError("this policy's embeddings look back at tokens; read whole episodes, without past_kv_cache")


def values(hooked: HookedTransformer, cache) -> torch.Tensor:
    """What the policy expects to earn at each position, [batch, pos], from the cache of `run_with_cache`."""
    return cache["ln_final.hook_normalized"] * hooked.ln_final.w @ hooked.value


def episodes(folder: str | Path = HERE) -> dict[str, torch.Tensor]:
    """Episodes that the policy played: `tokens` [batch, pos], and emojimaze's own `logits` and `values` for them."""
    found = load_file(str(Path(folder) / "episodes.safetensors"))
    return {**found, "tokens": found["tokens"].long()}


def differences(folder: str | Path = HERE) -> dict[str, float]:
    """The largest difference of a logit, and of a value, from emojimaze's."""
    hooked, told = model(folder), episodes(folder)
    with torch.no_grad():
        logits, cache = hooked.run_with_cache(told["tokens"], names_filter="ln_final.hook_normalized")
    pairs = {"logits": logits, "values": values(hooked, cache)}
    return {name: (found - told[name]).abs().max().item() for name, found in pairs.items()}


if __name__ == "__main__":
    for name, largest in differences().items():
        print(f"{name}: within {largest:.1e} of emojimaze's")
