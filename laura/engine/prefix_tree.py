"""Which tokens are read together, and which only once: the plan of a scoring, and its passes.

Texts that begin alike form a tree: the shared beginning is its trunk, what differs
its branches. A piece is such a tree (or a single text) laid flat, trunk first; a pass
is a row of pieces without padding. A tree too large for one pass has its trunk read
in a pass of its own and kept; the passes of its branches then follow that prefix.

    texts   a b c d | a b c e | x y      piece 1: a b c, d, e     piece 2: x y

Every token is read at its place in its own text and sees only what stands before it
there, so the plan changes the cost and nothing else.

A pass is handed to the model as `decode=` (see attention.py): every piece attends to itself,
each span of it to the spans before it in its own text, and to the shared prefix, if one stands
before the pass.

Shapes: H heads, G key/value heads, T tokens of the pass, P tokens of the prefix, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from laura.engine.requests import TokenDocument
from laura.models.attention import Documents, Scoring, grouped_attention
from laura.results.errors import DataError

# A shorter beginning is not worth a branch; a shorter prefix not worth a pass.
SHORTEST_TRUNK = 4
SHORTEST_PREFIX = 32
# Attention of a piece reads a square of this side; a short trunk is not worth a large one.
LARGEST_PIECE = 1024
LARGEST_SHORT_PIECE = 512
# Deeper trees occur only in contrived texts; their branches are read apart.
DEEPEST = 200


@dataclass
class Text:
    """A text to be read.

    Attributes:
        tokens: Its token ids.
        asked: Its places whose output is asked for.
        slot: The adapter slot that reads it; None for the base.
        targets: The token that should follow each asked place.
        requests: Numbers of the requests that it answers.
    """

    tokens: tuple[int, ...]
    asked: list[int] = field(default_factory=list)
    slot: int | None = None
    targets: list[int] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)


@dataclass
class Span:
    """Tokens `start` to `end` of a text, and the span of the piece that comes before."""

    text: int
    start: int
    end: int
    before: int | None = None

    @property
    def tokens(self) -> int:
        """How many."""
        return self.end - self.start


@dataclass
class TokenSpan:
    """A tree laid flat: spans in the order in which they are read."""

    slot: int | None
    spans: list[Span] = field(default_factory=list)
    ending: list[tuple[int, int]] = field(default_factory=list)  # (text, its last span)

    @property
    def tokens(self) -> int:
        """Tokens to read."""
        return sum(span.tokens for span in self.spans)


@dataclass
class ScoringPass:
    """Pieces read in one go.

    Attributes:
        pieces: One after another, ordered by slot.
        follows: Number of the prefix that stands before every piece, if any.
        keeps: Number of the prefix that this pass (then one span) makes, if any.
        asks: (text, number of its asked place, place in the row).
        needed: Texts whose answers need this pass.
    """

    pieces: list[TokenSpan]
    follows: int | None = None
    keeps: int | None = None
    asks: list[tuple[int, int, int]] = field(default_factory=list)
    needed: set[int] = field(default_factory=set)

    @property
    def tokens(self) -> int:
        """Tokens to read."""
        return sum(piece.tokens for piece in self.pieces)


@dataclass
class _TreeNode:
    """A part of the tree: tokens `start` to `end` of `source`, then its children."""

    source: int
    start: int
    end: int
    children: list[_TreeNode] = field(default_factory=list)
    ending: list[int] = field(default_factory=list)

    @cached_property
    def total(self) -> int:
        """Tokens of the whole tree; asked only once the tree is settled."""
        return self.end - self.start + sum(child.total for child in self.children)

    def below(self) -> Iterator[int]:
        yield from self.ending
        for child in self.children:
            yield from child.below()


def plan(texts: Sequence[Text], row_tokens: int, share: bool = True) -> list[ScoringPass]:
    """The passes that answer every asked place once, those that make a prefix before its users.

    Args:
        texts: What is read; those without tokens or asked places are left out.
        row_tokens: Most tokens of a pass; a piece above it is read alone.
        share: Whether common beginnings are read once.
    """
    wanted = [i for i, text in enumerate(texts) if text.asked and text.tokens]
    planner = _Planner(texts, row_tokens)
    if not share:
        roots = [_TreeNode(i, 0, len(texts[i].tokens), ending=[i]) for i in wanted]
        return planner.passes(roots)
    roots = []
    for slot in {texts[i].slot: None for i in wanted}:
        members = sorted(
            (i for i in wanted if texts[i].slot == slot), key=lambda i: texts[i].tokens
        )
        roots += _settled(_grown(texts, members, 0, 0), 0)
    return planner.passes(roots)


def _grown(texts: Sequence[Text], members: list[int], start: int, depth: int) -> _TreeNode:
    """The tree of sorted texts that share their first `start` tokens."""
    first, last = texts[members[0]].tokens, texts[members[-1]].tokens
    end, most = start, min(len(first), len(last))
    while end < most and first[end] == last[end]:
        end += 1
    node = _TreeNode(members[0], start, end)
    rest = 0
    while rest < len(members) and len(texts[members[rest]].tokens) == end:
        node.ending.append(members[rest])
        rest += 1
    groups: list[list[int]] = []
    for i in members[rest:]:
        token = texts[i].tokens[end]
        if not groups or texts[groups[-1][0]].tokens[end] != token or depth >= DEEPEST:
            groups.append([])
        groups[-1].append(i)
    node.children = [_grown(texts, group, end, depth + 1) for group in groups]
    return node


def _settled(node: _TreeNode, start: int) -> list[_TreeNode]:
    """The node, beginning at `start`, with every trunk that is not worth it dissolved."""
    length = node.end - start
    if not node.children:
        return [_TreeNode(node.source, start, node.end, [], node.ending)]
    if length < SHORTEST_TRUNK:
        return [*_ended(node, start), *(one for c in node.children for one in _settled(c, start))]
    children = [one for child in node.children for one in _settled(child, node.end)]
    kept = _TreeNode(node.source, start, node.end, children, node.ending)
    if length >= SHORTEST_PREFIX or kept.total <= LARGEST_SHORT_PIECE:
        return [kept]
    return [*_ended(node, start), *(replace(child, start=start) for child in children)]


def _ended(node: _TreeNode, start: int) -> list[_TreeNode]:
    """A text that ends where others go on, when it is read apart from them."""
    return [_TreeNode(node.source, start, node.end, [], node.ending)] if node.ending else []


class _Planner:
    """Lays trees flat and packs them."""

    def __init__(self, texts: Sequence[Text], row_tokens: int) -> None:
        self.texts, self.row_tokens = texts, row_tokens
        self.made: list[ScoringPass] = []
        self.prefixes: list[list[tuple[ScoringPass, Span]]] = []  # each a chain from its root

    def passes(self, roots: list[_TreeNode]) -> list[ScoringPass]:
        """All passes for these trees."""
        self._place(roots, None)
        return self.made

    def _place(self, nodes: list[_TreeNode], follows: int | None) -> None:
        limit = min(LARGEST_PIECE, self.row_tokens)
        small = [node for node in nodes if not node.children or node.total <= limit]
        pieces = [self._flat(node) for node in small]
        # The longest first, so that time left is not underestimated.
        pieces.sort(key=lambda piece: -piece.tokens)
        for pack in packs([piece.tokens for piece in pieces], self.row_tokens):
            row = sorted((pieces[i] for i in pack), key=lambda piece: route_order(piece.slot))
            self._add(ScoringPass(row, follows))
        for node in nodes:
            if node.children and node.total > limit:
                self._place_branches(node, follows)

    def _place_branches(self, node: _TreeNode, follows: int | None) -> None:
        """A trunk in a pass of its own, then its branches behind it."""
        trunk = Span(node.source, node.start, node.end)
        piece = TokenSpan(self.texts[node.source].slot, [trunk], [(i, 0) for i in node.ending])
        made = ScoringPass([piece], follows, keeps=len(self.prefixes), needed=set(node.below()))
        chain = self.prefixes[follows] if follows is not None else []
        self.prefixes.append([*chain, (made, trunk)])
        self._add(made)
        assert made.keeps is not None
        self._place(node.children, made.keeps)

    def _flat(self, root: _TreeNode) -> TokenSpan:
        piece = TokenSpan(self.texts[root.source].slot)
        waiting: list[tuple[_TreeNode, int | None]] = [(root, None)]
        while waiting:
            node, before = waiting.pop()
            own = len(piece.spans)
            piece.spans.append(Span(node.source, node.start, node.end, before))
            piece.ending += [(i, own) for i in node.ending]
            waiting += [(child, own) for child in reversed(node.children)]
        return piece

    def _add(self, made: ScoringPass) -> None:
        """Append a pass and find where the asked places of the texts that end in it lie."""
        self.made.append(made)
        start = 0
        for piece in made.pieces:
            begins = []
            for span in piece.spans:
                begins.append(start)
                start += span.tokens
            for text, last in piece.ending:
                made.needed.add(text)
                chain: list[tuple[ScoringPass, Span, int]] = []
                place: int | None = last
                while place is not None:
                    chain.append((made, piece.spans[place], begins[place]))
                    place = piece.spans[place].before
                if made.follows is not None:
                    chain += [(prefix, span, 0) for prefix, span in self.prefixes[made.follows]]
                self._ask(text, chain)

    def _ask(self, text: int, chain: list[tuple[ScoringPass, Span, int]]) -> None:
        for number, asked in enumerate(self.texts[text].asked):
            where, span, begin = next(c for c in chain if c[1].start <= asked < c[1].end)
            where.asks.append((text, number, begin + asked - span.start))


def route_order(slot: int | None) -> int:
    """A number that sorts slots, the base first."""
    return -1 if slot is None else slot


def packs(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Group positions, in order, so that the lengths of a group sum to at most `limit`.

    A length above the limit stands alone.
    """
    groups: list[list[int]] = []
    total = 0
    for position, length in enumerate(lengths):
        if not groups or total + length > limit:
            groups.append([])
            total = 0
        groups[-1].append(position)
        total += length
    return groups


# Pieces behind a prefix attend together in blocks of so many tokens: the prefix's keys
# are joined with theirs once a block.
BLOCK_TOKENS = 256


@dataclass
class PrefixKeys:
    """Keys and values (1, G, P, D) of a beginning that others follow, one pair a layer."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of the beginning."""
        return int(self.layers[0][0].shape[2]) if self.layers else 0


class TreeAttention:
    """Attention of one pass.

    Args:
        pieces: What is read, one after another.
        prefix: What stands before every piece.
        keeps: Filled with the keys and values of the pass and of what it follows.
        device: Where the model lives.
    """

    def __init__(
        self,
        pieces: Sequence[TokenSpan],
        prefix: PrefixKeys | None,
        keeps: PrefixKeys | None,
        device: torch.device,
    ) -> None:
        self.prefix, self.keeps = prefix, keeps
        before = prefix.tokens if prefix else 0
        blocks = _blocks(pieces) if before else [[piece] for piece in pieces]
        self.lengths = [sum(piece.tokens for piece in block) for block in blocks]
        self.masks = [
            None if not before and len(block[0].spans) == 1 else _mask(block, before).to(device)
            for block in blocks
        ]
        beginning = torch.arange(before)
        self.places = [
            torch.cat([beginning, *(torch.arange(s.start, s.end) for p in b for s in p.spans)])
            for b in blocks
        ]
        self._windowed: dict[int, list[Tensor | None]] = {}
        # Texts that share nothing are documents like those of a training.
        trees = any(mask is not None for mask in self.masks)
        self.documents = None if trees else Documents(self.lengths)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scoring
    ) -> Tensor:
        """Attention (1, T, H, D) of the pass in one layer."""
        if self.keeps is not None:
            self.keeps.layers.append(self._behind_prefix(layer, key, value))
        if self.documents is not None:
            return self.documents.attend(query, key, value, scores, 0.0).transpose(1, 2)
        outputs = []
        pieces = zip(
            self._within(scores.window),
            query.split(self.lengths, dim=2),
            key.split(self.lengths, dim=2),
            value.split(self.lengths, dim=2),
            strict=True,
        )
        for mask, part_query, part_key, part_value in pieces:
            keys, values = self._behind_prefix(layer, part_key, part_value)
            outputs.append(grouped_attention(part_query, keys, values, mask, scores))
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        return joined.transpose(1, 2)

    def _within(self, window: int | None) -> list[Tensor | None]:
        """The masks of layers with this window, where a text's places say who lies in it."""
        if window is None:
            return self.masks
        if window not in self._windowed:
            near = ((p[:, None] - p) < window for p in self.places)
            pairs = zip(self.masks, near, strict=True)
            self._windowed[window] = [
                None if mask is None else mask & seen[-len(mask) :].to(mask.device)
                for mask, seen in pairs
            ]
        return self._windowed[window]

    def _behind_prefix(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.prefix is None:
            return key, value
        prefix_key, prefix_value = self.prefix.layers[layer]
        return torch.cat([prefix_key, key], dim=2), torch.cat([prefix_value, value], dim=2)


def _blocks(pieces: Sequence[TokenSpan]) -> list[list[TokenSpan]]:
    groups = packs([piece.tokens for piece in pieces], BLOCK_TOKENS)
    return [[pieces[place] for place in group] for group in groups]


def _mask(block: Sequence[TokenSpan], before: int) -> Tensor:
    """Who sees whom: (tokens of the block, prefix and block), True where it does."""
    size = sum(piece.tokens for piece in block)
    mask = torch.zeros(size, before + size, dtype=torch.bool)
    mask[:, :before] = True
    start = 0
    for piece in block:
        begins: list[int] = []
        for span in piece.spans:
            begins.append(start)
            rows = slice(start, start + span.tokens)
            own = before + start
            mask[rows, own : own + span.tokens] = torch.ones(
                span.tokens, span.tokens, dtype=torch.bool
            ).tril()
            place = span.before
            while place is not None:
                begin, seen = before + begins[place], piece.spans[place]
                mask[rows, begin : begin + seen.tokens] = True
                place = seen.before
            start += span.tokens
    return mask


def supervised(document: TokenDocument, slot: int | None) -> Text:
    """A document as a text whose supervised tokens are asked for."""
    if len(document.token_ids) != len(document.supervised):
        raise DataError(
            f"document {document.index} has {len(document.token_ids)} tokens and "
            f"{len(document.supervised)} supervision marks; both must be equally many"
        )
    targets = [i for i, asked in enumerate(document.supervised) if asked and i > 0]
    ids = document.token_ids
    return Text(tuple(ids[:-1]), [i - 1 for i in targets], slot, [ids[i] for i in targets])


def inputs_of(
    texts: Sequence[Text], passes: Sequence[ScoringPass], device: torch.device
) -> Iterator[tuple[ScoringPass, dict[str, Any]]]:
    """The model's inputs, pass by pass; prefixes are kept as long as others follow."""
    last_use = {one.follows: place for place, one in enumerate(passes)}
    prefixes: dict[int, PrefixKeys] = {}
    for place, one in enumerate(passes):
        follows = prefixes[one.follows] if one.follows is not None else None
        keeps = None
        if one.keeps in last_use and one.keeps is not None:
            keeps = prefixes[one.keeps] = PrefixKeys()
        spans = [span for piece in one.pieces for span in piece.spans]
        ids = [token for span in spans for token in texts[span.text].tokens[span.start : span.end]]
        positions = [position for span in spans for position in range(span.start, span.end)]
        yield (
            one,
            {
                "input_ids": torch.tensor([ids], device=device),
                "position_ids": torch.tensor([positions], device=device),
                "decode": TreeAttention(one.pieces, follows, keeps, device),
            },
        )
        if one.follows is not None and last_use[one.follows] == place:
            del prefixes[one.follows]
