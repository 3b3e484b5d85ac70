"""Few tokens through their adapters by lookups, for a processor.

A processor's batched products of one or two tokens with each adapter read the matrices at
half of the memory's speed. A sum of a table's rows, weighted, as `embedding_bag` makes it for
embeddings, is the same product, read at full speed:

    A x = sum of A's rows, weighted by x        B (A x) = sum of B's rows, weighted by A x

Tokens need not be sorted, gathered or filled up, and each one's sum is its own: its bits do
not depend on its neighbours. Neighbours of one slot still share what a processor's cache
holds.

Shapes: T tokens, I in, O out and r rank of one map, R ranks of a group, K places, m maps of
a stack, N rows of a table that a token sums, M sums of a token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from laura.models.slots import MapGroup, Shelf


@dataclass
class Lookup:
    """Tokens of a pass whose slots are in one shelf.

    Attributes:
        shelf: Which.
        tokens: Where they stand in the pass.
        places_T: Each one's place in the shelf.
    """

    shelf: Shelf
    tokens: slice
    places_T: Tensor
    _rows: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def add(self, group: MapGroup, x_TI: Tensor, y_TO: Tensor) -> None:
        """Add B (A x) of these tokens of the pass to y, for the maps of a group."""
        factors = self.shelf.factors(group, 0, len(self.shelf.places))
        if factors is None:
            return
        inner_TR = self._sums(factors.down_KIR.flatten(0, 1), x_TI[self.tokens], 1)
        for stack, up_KmrO in factors.ups:
            maps = len(stack.names)
            found = self._sums(up_KmrO.flatten(0, 2), inner_TR[:, stack.ranks], maps)
            y_TO[self.tokens, stack.columns] += found.view(len(inner_TR), -1)

    def _sums(self, table: Tensor, weights_TN: Tensor, sums: int) -> Tensor:
        """Sums (T * M, width) of the rows of every token's place, by the token's weights."""
        rows, starts = self._rows_of(weights_TN.shape[1], sums)
        found: Tensor = functional.embedding_bag(
            rows, table, starts, mode="sum", per_sample_weights=weights_TN.reshape(-1)
        )
        return found

    def _rows_of(self, count: int, sums: int) -> tuple[Tensor, Tensor]:
        """Which rows every token sums, N of its place, and where each of its M sums begins."""
        if (count, sums) not in self._rows:
            each = torch.arange(count, device=self.places_T.device)
            rows = (self.places_T[:, None] * count + each).flatten()
            starts = torch.arange(0, len(rows), count // sums, device=rows.device)
            self._rows[count, sums] = rows.int(), starts.int()
        return self._rows[count, sums]
