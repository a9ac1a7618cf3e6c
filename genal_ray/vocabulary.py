"""Training only those rows of the embedding table that the training texts use.

A few hundred labeled texts use a few thousand of 30,000 rows. The others get no gradient, yet a dense optimiser reads
and writes them, and their moments, at every step: half the memory traffic of a small encoder's update.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from genal_ray.batching import TokenizedTexts


class UsedRows(nn.Module):
    """An embedding table cut to some of its rows, addressed by the ids of the whole table."""

    position: torch.Tensor

    def __init__(self, table: nn.Embedding, used: torch.Tensor) -> None:
        """`used` int64 [rows], increasing; the row of `table.padding_idx` is among them when there is one."""
        super().__init__()
        self.weight = nn.Parameter(table.weight.detach()[used].clone())
        position = torch.zeros(table.num_embeddings, dtype=torch.int64, device=used.device)
        position[used] = torch.arange(len(used), device=used.device)
        self.register_buffer("position", position, persistent=False)
        self.padding_idx = None if table.padding_idx is None else int(position[table.padding_idx])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(self.position[input_ids], self.weight, padding_idx=self.padding_idx)


@contextmanager
def used_vocabulary(model: PreTrainedModel, texts: TokenizedTexts) -> Iterator[None]:
    """Within the context the model embeds the tokens of `texts` alone; afterwards it has its whole table again."""
    table = model.get_input_embeddings()
    if type(table) is not nn.Embedding or table.max_norm is not None:  # it does more than look rows up
        yield
        return
    pads = [texts.pad_id] if table.padding_idx is None else [texts.pad_id, table.padding_idx]
    ids = np.unique(np.concatenate([*texts.input_ids, np.array(pads, dtype=np.int64)]))
    used = torch.from_numpy(ids).to(table.weight.device)
    rows = UsedRows(table, used)
    model.set_input_embeddings(rows)
    try:
        yield
    finally:
        with torch.no_grad():
            table.weight[used] = rows.weight
        model.set_input_embeddings(table)
