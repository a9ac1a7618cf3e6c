"""Rollouts as arrays, and which worker works on which of them when.

rollouts ─► RolloutBatch ─► minibatches (one optimiser step) ─► a worker's share ─► MicroBatch (one forward pass)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genal_ray.types import Rollout

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch:
    """The rollouts of an update that have a response, as arrays."""

    tokens: list[IntArray]
    """Per sequence: prompt, then response."""
    num_prompt: IntArray
    """int64 [n], tokens of the prompt; at least 1."""
    num_response: IntArray
    """int64 [n], tokens of the response; at least 1."""
    rewards: Tensor
    """float32 [n]"""
    generator_logprobs: Tensor
    """float32 [n, R], nats; zero where masked."""
    mask: Tensor
    """bool [n, R], R the longest response."""
    groups: IntArray
    """int64 [n], the same number for sequences of the same prompt, from 0 in the order of their first."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> IntArray:
        return self.num_prompt + self.num_response


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """One forward pass: right-padded tokens, and where the response tokens are."""

    tokens: Tensor
    """int64 [b, L]"""
    row: Tensor
    """int64 [T], row in `tokens` of each response token."""
    column: Tensor
    """int64 [T], column in `tokens` of each response token."""
    sequence: Tensor
    """int64 [T], row in the batch's [n, R] arrays."""
    position: Tensor
    """int64 [T], column in the batch's [n, R] arrays."""
    weight: float
    """1, or 0 for a pass that only keeps this worker in step with the others."""
    most_tokens: int
    """The largest T of all workers in this pass."""

    def pick(self, array: Tensor) -> Tensor:
        """[n, R] -> [T]"""
        return array[self.sequence, self.position]


def pack(rollouts: Sequence[Rollout], device: torch.device | str = "cpu") -> RolloutBatch:
    """Arrays of the rollouts; completions without a single response token carry no gradient and are left out."""
    kept = [r for r in rollouts if r.completion.token_ids]
    prompts = [r.completion.prompt_token_ids for r in kept]
    responses = [r.completion.token_ids for r in kept]
    assert all(prompts), "a prompt without tokens has no state from which to predict the first response token"
    num_response = np.array([len(r) for r in responses], dtype=np.int64)
    mask = np.arange(max(num_response, default=0)) < num_response[:, None]
    logprobs = np.zeros(mask.shape, dtype=np.float32)
    if kept:
        logprobs[mask] = np.concatenate([r.completion.logprobs for r in kept])
    return RolloutBatch(
        tokens=[np.array([*p, *r], dtype=np.int64) for p, r in zip(prompts, responses, strict=True)],
        num_prompt=np.array([len(p) for p in prompts], dtype=np.int64),
        num_response=num_response,
        rewards=torch.tensor([r.reward for r in kept], dtype=torch.float32, device=device),
        generator_logprobs=torch.from_numpy(logprobs).to(device),
        mask=torch.from_numpy(mask).to(device),
        groups=_groups(prompts),
    )


def _groups(prompts: Sequence[tuple[int, ...]]) -> IntArray:
    numbers: dict[tuple[int, ...], int] = {}
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], dtype=np.int64)


def minibatches(num_sequences: int, batch_size: int, rng: np.random.Generator) -> Iterator[IntArray]:
    """One pass over the sequences in random order; the last minibatch may be smaller."""
    order = rng.permutation(num_sequences)
    for start in range(0, num_sequences, batch_size):
        yield order[start : start + batch_size]


def micro_batches(
    batch: RolloutBatch, rows: IntArray, *, size: int, rank: int, world_size: int
) -> Iterator[MicroBatch]:
    """Worker `rank`'s share of `rows`, as forward passes of at most `size` sequences of similar length.

    Every worker gets the same number of passes, or collective operations would wait for ever; one that has no
    sequence left gets passes of weight 0.
    """
    by_length = rows[np.argsort(-batch.lengths[rows], kind="stable")]
    num_passes = -(-len(by_length) // (world_size * size))
    shortest = by_length[-1:]
    shares = [np.array_split(by_length[worker::world_size], num_passes) for worker in range(world_size)]
    for of_workers in zip(*shares, strict=True):
        filled = [share if len(share) else shortest for share in of_workers]
        most_tokens = max(int(batch.num_response[share].sum()) for share in filled)
        yield _collate(batch, filled[rank], 1.0 if len(of_workers[rank]) else 0.0, most_tokens)


def _collate(batch: RolloutBatch, rows: IntArray, weight: float, most_tokens: int) -> MicroBatch:
    device = batch.mask.device
    tokens = np.zeros((len(rows), int(batch.lengths[rows].max())), dtype=np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(batch.tokens[row])] = batch.tokens[row]
    num_response = batch.num_response[rows]
    position = np.concatenate([np.arange(n) for n in num_response])
    column = np.repeat(batch.num_prompt[rows], num_response) + position
    return MicroBatch(
        tokens=torch.from_numpy(tokens).to(device),
        row=torch.from_numpy(np.repeat(np.arange(len(rows)), num_response)).to(device),
        column=torch.from_numpy(column).to(device),
        sequence=torch.from_numpy(np.repeat(rows, num_response)).to(device),
        position=torch.from_numpy(position).to(device),
        weight=weight,
        most_tokens=most_tokens,
    )
