"""The same work in plain PyTorch: what a user would otherwise write.

The maze (`scatter`), the transformer, the rollout with a key-value cache and PPO, batched throughout, with the sizes
and coefficients of our config. It keeps the log-probabilities and values of the rollout, where ours scores the
episodes again with the training forward: two forwards' worth of work in every eight that it is spared.
"""

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from agents.policies import PolicyConfig
from agents.runs.config import Config
from benchmarks import counts
from benchmarks.cases import train
from benchmarks.measure import Case, Program
from envs import tokens


class Maze:
    """EmojiMaze-v0, layout `scatter`, for a batch: the grid is stored, and tiles melt as they are reached."""

    def __init__(self, config: Config, batch: int):
        world: Any = config.world
        self.batch, self.world = batch, world
        self.rows = torch.arange(batch)
        self.steps, self.tile_map = torch.tensor(tokens.STEPS), torch.tensor(tokens.TILE_MAP)
        self.winds = torch.tensor([tokens.CALM, *tokens.GUSTS])
        self.rewards = torch.tensor([0.0, world.gold_reward, world.mold_reward])

    def reset(self) -> torch.Tensor:
        """Fresh mazes; → the first observation, int64[B, 6]."""
        size, batch = self.world.size, self.batch
        draws, mold = torch.rand(batch, size, size), 0.1 + 0.4 * torch.rand(batch, 1, 1)
        gold = draws < mold * (1 + self.world.gold_ratio)
        self.grid = torch.where(draws < mold, tokens.MOLD, torch.where(gold, tokens.GOLD, tokens.PATH)).to(torch.int8)
        for edge in (0, -1):
            self.grid[:, edge] = self.grid[:, :, edge] = tokens.MOLD
        self.position = torch.full((batch, 2), size // 2)
        self._melt()
        return self._observe(torch.zeros(batch, dtype=torch.int64))

    def step(self, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Move, be paid, perhaps be blown on; → observation int64[B, 6], reward float32[B]."""
        reward = self.world.turn_reward + self._push(action, torch.ones(self.batch, dtype=torch.bool))
        blows, gust = torch.rand(self.batch) < self.world.wind_probability, torch.randint(4, (self.batch,))
        reward = reward + self._push(gust, blows)
        return self._observe(torch.where(blows, gust + 1, 0)), reward

    def neighbours(self) -> torch.Tensor:
        """Roles int64[B, 4] around the agent."""
        cells = self.position[:, None] + self.steps
        return self.grid[self.rows[:, None], cells[..., 0], cells[..., 1]].long()

    def _push(self, direction, moves):
        target = torch.where(moves[:, None], self.position + self.steps[direction], self.position)
        paid = self.rewards[self.grid[self.rows, target[:, 0], target[:, 1]].long()] * moves
        self.position = target
        self._melt()
        return paid

    def _melt(self):
        """The tile that the agent stands on reads as Mold from now on; it is asked for only after the agent left."""
        if self.world.melting:
            self.grid[self.rows, self.position[:, 0], self.position[:, 1]] = tokens.MOLD

    def _observe(self, wind):
        silent = torch.full((self.batch, 1), tokens.SILENT)
        return torch.cat([silent, self.winds[wind][:, None], self.tile_map[self.neighbours()]], dim=1)


class Block(nn.Module):
    """Causal attention with rotary positions, and a squared-ReLU MLP."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        width, hidden = config.width, config.hidden
        self.heads = config.heads
        self.attention_norm, self.mlp_norm = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        for layer, gain in ((self.qkv, 1), (self.out, 2 * config.layers), (self.up, 1), (self.down, 2 * config.layers)):
            nn.init.normal_(layer.weight, std=(layer.in_features * gain) ** -0.5)

    def forward(self, x, rotation, cache=None, start=0):
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key, visible = _rotate(query, rotation), _rotate(key, rotation), None
        if cache is not None:
            end = start + length
            cache[0][:, :, start:end], cache[1][:, :, start:end] = key, value
            key, value = (kept[:, :, :end] for kept in cache)
            visible = torch.arange(end) <= torch.arange(start, end)[:, None]
        mixed = F.scaled_dot_product_attention(query, key, value, visible, is_causal=cache is None)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(torch.square(F.relu(self.up(self.mlp_norm(x)))))


def _rotate(x, rotation):
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


class Policy(nn.Module):
    """Tied embedding, blocks, a value head that starts at zero."""

    def __init__(self, config: PolicyConfig, length: int):
        super().__init__()
        self.config, head = config, config.width // config.heads
        self.embedding = nn.Parameter(torch.randn(tokens.FIRST, config.width) * config.width**-0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.value = nn.Linear(config.width, 1, bias=False)
        nn.init.zeros_(self.value.weight)
        angles = torch.outer(torch.arange(length).float(), 10_000.0 ** (-torch.arange(0, head, 2) / head))
        self.cosine, self.sine = angles.cos(), angles.sin()

    def forward(self, sequence, caches=None, start=0, at=None):
        """Tokens int64[B, S] → action log-probabilities [B, P, 4] and values [B, P] at the positions `at`."""
        end = start + sequence.shape[1]
        rotation = self.cosine[start:end], self.sine[start:end]
        x = self.embedding[sequence] * self.config.width**0.5
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, None if caches is None else caches[index], start)
        x = self.norm(x[:, at])
        logits = x @ self.embedding[tokens.MOVES[0] : tokens.MOVES[0] + 4].T
        return logits.log_softmax(-1), self.value(x)[..., 0]


class Trainer:
    """PPO of one policy, from scratch; `update` plays a batch and learns from it."""

    def __init__(self, config: Config, seed: int = 0):
        torch.manual_seed(seed)
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self.rl, (self.world, _) = config.rl, config.world.make()
        self.maze = Maze(config, self.rl.episodes)
        self.policy = Policy(config.policy, self.world.episode_length())
        self.optimiser = torch.optim.Adam(self.policy.parameters(), lr=self.rl.learning_rate, fused=True)
        steps = self.rl.updates * self.rl.epochs * self.rl.minibatches
        last = self.rl.learning_rate * self.rl.final_learning_rate
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, steps, last)

    @torch.no_grad()
    def play(self) -> dict[str, torch.Tensor]:
        """A batch of episodes, with the log-probabilities and values of the policy that played."""
        batch, config = self.rl.episodes, self.policy.config
        shape = (batch, config.heads, self.world.episode_length() - 1, config.width // config.heads)
        caches = [(torch.empty(shape), torch.empty(shape)) for _ in range(config.layers)]
        observation, said = self.maze.reset(), torch.full((batch, 1), tokens.NULL_BADGE)
        spoken, turns = [said], []
        for index in range(self.world.turns):
            chunk = torch.cat([said, observation], dim=1)
            choices, values = self.policy(chunk, caches, index * chunk.shape[1], at=slice(-1, None))
            action = torch.multinomial(choices[:, 0].exp(), 1)
            taken, around = choices[:, 0].gather(1, action), self.maze.neighbours()
            observation, reward = self.maze.step(action[:, 0])
            said = action + tokens.MOVES[0]
            spoken += [chunk[:, 1:], said]
            turns.append((action[:, 0], taken[:, 0], values[:, 0], reward, around))
        names = ("actions", "log_probabilities", "values", "rewards", "neighbours")
        stacked = {name: torch.stack(part, dim=1) for name, part in zip(names, zip(*turns, strict=True), strict=True)}
        return stacked | {"tokens": torch.cat(spoken, dim=1)}

    def update(self) -> float:
        """One PPO update; → mean return of the episodes played."""
        rl, batch = self.rl, self.play()
        advantages, running = torch.zeros_like(batch["values"]), 0.0
        following = torch.zeros_like(batch["values"][:, 0])
        for turn in reversed(range(self.world.turns)):
            value, reward = batch["values"][:, turn], batch["rewards"][:, turn] * rl.reward_scale
            running = reward + rl.discount * (following + rl.trace_decay * running) - value
            advantages[:, turn], following = running, value
        batch["targets"] = advantages + batch["values"]
        batch["advantages"] = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        at = torch.as_tensor(self.world.action_positions() - 1)
        for _ in range(rl.epochs):
            for rows in torch.randperm(rl.episodes).view(rl.minibatches, -1):
                self.optimiser.zero_grad(set_to_none=True)
                self._loss({name: x[rows] for name, x in batch.items()}, at).backward()
                nn.utils.clip_grad_norm_(self.policy.parameters(), rl.max_gradient_norm)
                self.optimiser.step()
                self.schedule.step()
        return batch["rewards"].sum(dim=1).mean().item()

    def _loss(self, part, at):
        rl = self.rl
        choices, values = self.policy(part["tokens"][:, :-1], at=at)
        ratio = (choices.gather(-1, part["actions"][..., None])[..., 0] - part["log_probabilities"]).exp()
        clipped = ratio.clamp(1 - rl.clip_low, 1 + rl.clip_high)
        surrogate = torch.minimum(ratio * part["advantages"], clipped * part["advantages"]).mean()
        value_loss = 0.5 * (values - part["targets"]).square().mean()
        same = part["neighbours"][..., None, :] == torch.arange(3)[:, None]
        within = torch.where(same, choices[..., None, :], -1e30).log_softmax(-1)
        entropy = -torch.where(same, within.exp() * within, 0.0).sum(-1)
        equalized = torch.where(same.sum(-1) >= 2, entropy, 0.0).sum(-1).mean()
        return rl.value_weight * value_loss - surrogate - rl.equalized_entropy_weight * equalized


def case(config: Config) -> Case:
    """One update a call, at the sizes of the config."""
    count = config.rl.episodes * config.world.make()[0].episode_length()
    work = counts.stage(config, "rl", scored=False, sparing=False)
    name = f"PPO end to end, {train.sizes(config)}, plain PyTorch"
    return Case(name, "tokens", count, lambda: Program(Trainer(config).update), work)
