"""A transformer in plain NumPy, float64, of weights as TransformerLens names them."""

import numpy as np


def normalised(x, scale, epsilon=1e-6):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * scale


def rotated(x, base=10_000.0):
    """The halves of each head [B, S, heads, D] turned by their positions (arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] / base ** (np.arange(half) / half)
    cosine, sine = np.cos(angles)[None, :, None], np.sin(angles)[None, :, None]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def looking_back(x, count):
    """Half of the features [B, S, width] are the token's own, the rest those of the tokens before it."""
    width, result = x.shape[-1], x.copy()
    for back in range(1, count + 1):
        size = width // (2 * count)
        first = width // 2 + (back - 1) * size
        result[..., first : first + size] = 0
        result[:, back:, first : first + size] = x[:, :-back, first : first + size]
    return result


def forward(weights, layers, lookback, tokens):
    """Everything in a forward pass by name, as `analysis.inside` calls it; the block is axis 0 of what blocks have.

    Args:
        weights: by name, as `interop.hooked_weights` has them.
        layers: how many.
        lookback: tokens.
        tokens: int[B, S].
    """
    weights = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    names = ("stream", "pattern", "mixed", "heads", "hidden", "mlp")
    told: dict[str, list] = {name: [] for name in names}
    x = looking_back(weights["embed.W_E"][tokens], lookback)
    told["stream"].append(x)
    for layer in range(layers):
        own = {name.split(".", 2)[2]: w for name, w in weights.items() if name.startswith(f"blocks.{layer}.")}
        view = normalised(x, own["ln1.w"])
        query, key, value = (np.einsum("bsw,hwd->bshd", view, own[f"attn.W_{part}"]) for part in "QKV")
        scores = np.einsum("bqhd,bkhd->bhqk", rotated(query), rotated(key)) / np.sqrt(query.shape[-1])
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
        pattern = np.exp(scores - scores.max(axis=-1, keepdims=True))
        pattern /= pattern.sum(axis=-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhd->bqhd", pattern, value)
        heads = np.einsum("bqhd,hdw->bqhw", mixed, own["attn.W_O"])
        x = x + heads.sum(axis=2)
        hidden = np.maximum(normalised(x, own["ln2.w"]) @ own["mlp.W_in"], 0) ** 2
        mlp = hidden @ own["mlp.W_out"]
        x = x + mlp
        for name, part in zip(names, (x, pattern, mixed, heads, hidden, mlp), strict=True):
            told[name].append(part)
    final = normalised(x, weights["ln_final.w"])
    everything = {name: np.stack(parts) for name, parts in told.items()}
    return everything | {"logits": final @ weights["unembed.W_U"], "values": final @ weights["value"]}
