"""What a study replays: every source read or drawn, checked, tokenised, ready to be mixed.

Texts that the base itself writes are drawn once, kept, and read ever after:

    STUDY/replay/samples/HASH/      HASH = hash of everything that determines the texts
      samples.jsonl.gz   one line a text: the text or conversation, and how it ended
      manifest.json      SHA-256
    STUDY/replay/samples/HASH.partial.jsonl   answers so far, while it is being drawn

Text i has seed i and continues prompt i, begun again from the first when there are
fewer. What was cut off at `tokens` does not teach the end token there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from laura.data.corpus import Corpus, Enough, Subset, write_corpus
from laura.data.examples import Example, ExampleIdentity
from laura.data.mixing import Pool, Replay
from laura.data.packing import fit
from laura.data.sources import count_examples, is_endless, stream_examples, too_large
from laura.data.splits import fingerprint_of, measured_rows, refuse_measured
from laura.data.templates import Encoded, end_tokens, prompt_render
from laura.engine.engine import Engine
from laura.engine.requests import GenerateAnswer, GenerateRequest
from laura.evals.keeping import Keeper, partial_file, written_once
from laura.models.activations import TEXTS
from laura.models.device import resolve_precision, threads
from laura.recipe.sections import Arm, Recipe, ReplaySource
from laura.results.errors import DataError
from laura.results.progress import SILENT, Progress
from laura.results.store import content_hash
from laura.study.material import RESERVE, ExampleEncoder, corpus_identity, keep_only
from laura.study.workbench import Workbench

FORMAT = 1  # counts up when the same recipe would draw other texts
FILE = "samples.jsonl.gz"


@dataclass(frozen=True)
class BaseSamples:
    """What a base wrote.

    Attributes:
        examples: Texts, or conversations whose last answer is the base's; blank ones
            are left out. `index` is the number of the draw.
        cut: Numbers of those that did not end by themselves.
        blank: How many were left out.
    """

    examples: list[Example]
    cut: frozenset[int]
    blank: int


def load_prompts(source: ReplaySource, data_dir: Path | None) -> list[Example]:
    """The rows that are continued, no more than needed; none where nothing is given.

    Raises:
        DataError: as `load_examples`, or a conversation asks nothing.
    """
    if source.prompts is None:
        return []
    found = list(islice(stream_examples(source.prompts, data_dir), source.count))
    for example in found:
        if example.messages and not _asked(example):
            raise DataError(
                f"example {example.index} of {source.prompts.source} begins with an answer, so "
                "there is nothing for the base to answer; delete it or add a question"
            )
    return found


def base_samples(
    source: ReplaySource,
    prompts: Sequence[Example],
    engine: Engine,
    encoder: ExampleEncoder,
    base: str,
    folder: Path,
    progress: Progress,
) -> BaseSamples:
    """Draw the texts of a source, going on with or reusing what stands in the folder.

    Args:
        source: How many, how long, at which temperature.
        prompts: See `load_prompts`.
        engine: Runs the base.
        encoder: How the study makes tokens, for chat prompts.
        base: Fingerprint of the base.
        folder: Where samples lie, a folder of each set.
        progress: Where to report.

    Raises:
        DataError: every text is blank, or the tokenizer has no token to start from.
        CheckpointError: the kept texts do not match their checksums.
    """
    settings = source.model_dump(include={"count", "tokens", "temperature", "prompt_tokens"})
    identity = {
        "format": FORMAT,
        "base": base,
        "settings": settings,
        "prompts": [prompt.digest for prompt in prompts],
        "precision": str(engine.precision),
        **encoder.identity,
    }

    def draw(place: Path) -> list[dict[str, Any]]:
        return _draw(source, prompts, engine, encoder, place, identity, progress)

    return _read(written_once(folder, FILE, identity, draw, {"samples": settings}), source)


def _draw(
    source: ReplaySource,
    prompts: Sequence[Example],
    engine: Engine,
    encoder: ExampleEncoder,
    place: Path,
    identity: dict[str, Any],
    progress: Progress,
) -> list[dict[str, Any]]:
    """The rows of all texts; answers are kept as they come."""
    count = source.count or 0
    progress.say(f"the base writes {count} texts to be replayed")
    openings = [*_openings(source, prompts, encoder)]
    requests = [
        GenerateRequest(
            openings[number % len(openings)],
            (),
            source.tokens,
            temperature=source.temperature,
            seed=number,
        )
        for number in range(count)
    ]
    with Keeper(engine, {None: partial_file(place)}, {None: identity}) as keeper:
        answers = keeper.generate(requests)
    rows = []
    for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        prompt = prompts[number % len(prompts)] if prompts else None
        if prompt is not None and prompt.messages:
            said = [*_asked(prompt), ("assistant", answer.text)]
            messages = [{"role": role, "content": content} for role, content in said]
            content: dict[str, Any] = {"messages": messages}
        else:
            content = {"text": _whole(request, answer, engine, prompted=prompt is not None)}
        rows.append({"index": number, **content, "finish": answer.finish, "tokens": answer.tokens})
    return rows


def _openings(
    source: ReplaySource, prompts: Sequence[Example], encoder: ExampleEncoder
) -> Iterator[str]:
    """What the base is given to continue."""
    tokenizer = encoder.tokenizer
    if not prompts:
        start = tokenizer.bos_token or tokenizer.eos_token
        if start is None:
            raise DataError(
                "the tokenizer has neither a begin nor an end token to start a text from; name "
                "prompts for base_samples"
            )
        yield str(start)
    render: Callable[[list[dict[str, str]], bool], str] | None = None
    for prompt in prompts:
        if prompt.messages:
            render = render or prompt_render(tokenizer, encoder.template)
            asked = [{"role": role, "content": content} for role, content in _asked(prompt)]
            yield render(asked, True)
        else:
            ids = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
            # The last token may be a part of a character only.
            yield _decoded(tokenizer, ids[: source.prompt_tokens]).rstrip("\ufffd")


def _asked(example: Example) -> list[tuple[str, str]]:
    """The messages before the first answer."""
    roles = [role for role, _ in example.messages]
    stop = roles.index("assistant") if "assistant" in roles else len(roles)
    return list(example.messages[:stop])


def _whole(
    request: GenerateRequest, answer: GenerateAnswer, engine: Engine, *, prompted: bool
) -> str:
    """The text a sample is, with its beginning.

    Decoded together: some tokenizers drop a space at the beginning of what they decode.
    """
    new = answer.token_ids[: -1 if answer.finish == "end" else None]
    before = engine.encoder.prompt(request.prompt, request.max_new_tokens) if prompted else []
    return _decoded(engine.tokenizer, [*before, *new])


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def _read(rows: list[dict[str, Any]], source: ReplaySource) -> BaseSamples:
    examples, cut = [], set()
    for row in rows:
        messages = tuple((m["role"], m["content"]) for m in row.get("messages", ()))
        written = messages[-1][1] if messages else row["text"]
        if not written.strip():
            continue
        examples.append(Example(row["index"], messages, row.get("text", "")))
        if row["finish"] == "length":
            cut.add(row["index"])
    if not examples:
        raise DataError(
            f"all {len(rows)} texts that the base wrote are blank, so there is nothing to replay; "
            f"name prompts, or raise data.replay tokens ({source.tokens})"
        )
    return BaseSamples(examples, frozenset(cut), len(rows) - len(examples))


# ----- every source -----


@dataclass(frozen=True)
class ReplayPart:
    """One source of replay.

    Attributes:
        name: What it is called in run.json and in words.
        weight: Its share of the replay, relative to the others'.
        encoded: Its examples as tokens.
        fingerprint: Hash of their content, for run IDs.
        folder: Where the tokens lie.
    """

    name: str
    weight: float
    encoded: Sequence[Encoded]
    fingerprint: str
    folder: Path


@dataclass(frozen=True)
class ReplayData:
    """All that the arms of a study replay.

    Attributes:
        recipe: The recipe.
        parts: The sources; empty where nothing is replayed.
        progress: Where to report.
    """

    recipe: Recipe
    parts: Sequence[ReplayPart]
    progress: Progress = SILENT

    def mixture(self, fraction: float) -> Replay | None:
        """What an arm with this share of replay reads beside the target."""
        if not fraction:
            return None
        return Replay(fraction, self._pools, self.recipe.data.replay_exhausted)

    def identity(self, arm: Arm) -> dict[str, Any]:
        """What the sources add to the identity of a run; nothing where it does not ask them."""
        used: dict[str, Any] = {}
        if arm.replay:
            used["replay"] = {"fraction": arm.replay, "sources": self.sources}
        if arm.reads_activations:
            used["activations"] = self.sources
        return used

    def texts(self, count: int) -> list[list[int]]:
        """The first tokens of so many rows, one of each source in turn, each at most a row long."""
        length = self.recipe.train.row_tokens
        each = ([*islice(part.encoded, count)] for part in self.parts)
        turns = (one for turn in zip_longest(*each) for one in turn if one is not None)
        return [one.token_ids[:length] for one in islice(turns, count)]

    @property
    def sources(self) -> list[list[Any]]:
        """Weight and fingerprint of every source."""
        return [[part.weight, part.fingerprint] for part in self.parts]

    @cached_property
    def _pools(self) -> list[Pool]:
        return [self._pool(number, part) for number, part in enumerate(self.parts)]

    def _pool(self, number: int, part: ReplayPart) -> Pool:
        try:
            fitted = fit(
                part.encoded,
                self.recipe.train.row_tokens,
                self.recipe.data.overlong,
                split_long=True if self.recipe.regime == "pretrain" else "texts",
                progress=self.progress,
            )
        except DataError as error:
            raise DataError(f"data.replay.{number} ({part.name}): {error}") from error
        return Pool(part.name, part.encoded, fitted, part.weight)

    def forget_others(self, folder: Path) -> None:
        """Delete the tokens of sources that are replayed no more; texts the base wrote stay."""
        keep_only(folder / "corpus", {part.folder for part in self.parts})


@dataclass(frozen=True)
class ReplayReader:
    """Reads every source of `data.replay`, or has the base write it.

    Attributes:
        recipe: What is replayed.
        bench: Holds the base.
        encoder: How conversations become tokens; texts are learnt on every token.
        measured: What is measured on, by name; none of it may be replayed.
        folder: The study's folder of replay.
        data_dir: Data folder; None means `LAURA_DATA`, if set.
        progress: Where to report.
    """

    recipe: Recipe
    bench: Workbench
    encoder: ExampleEncoder
    measured: Mapping[str, Sequence[ExampleIdentity]]
    folder: Path
    data_dir: Path | None
    progress: Progress = SILENT

    def read(self) -> ReplayData:
        """All of it, ready to be mixed.

        Raises:
            DataError: missing, empty or malformed data, or rows that are measured on.
            StoreError: the disk is full or the folder cannot be written.
        """
        parts = [self._part(number, one) for number, one in enumerate(self.recipe.data.replay)]
        return ReplayData(self.recipe, parts, self.progress)

    def _part(self, number: int, source: ReplaySource) -> ReplayPart:
        where = f"data.replay.{number}"
        try:
            return self._sampled(where, source) if source.is_sampled else self._read(where, source)
        except DataError as error:
            told = str(error).startswith("data.replay.")
            raise error if told else DataError(f"{where}: {error}") from error

    def _read(self, where: str, source: ReplaySource) -> ReplayPart:
        enough = self._enough(source) if is_endless(source, self.data_dir) else None
        corpus, place = self._corpus(
            corpus_identity(source, enough, self.encoder, self.data_dir),
            stream_examples(source, self.data_dir),
            self.encoder.to_replay,
            lambda: count_examples(source, self.data_dir),
            enough,
            threads(),
        )
        refuse_measured(where, corpus.identities, self.measured)
        named = [source.source, source.subset, source.split]
        name = ", ".join(part for part in named if part)
        return ReplayPart(name, source.weight, corpus, fingerprint_of(corpus.identities), place)

    def _sampled(self, where: str, source: ReplaySource) -> ReplayPart:
        prompts = load_prompts(source, self.data_dir)
        refuse_measured(f"{where}.prompts", prompts, self.measured)
        model = self.bench.base.model
        precision = resolve_precision(self.recipe.measure.precision, model.device)
        engine = Engine(model, self.encoder.tokenizer, precision, progress=self.progress)
        samples = base_samples(
            source,
            prompts,
            engine,
            self.encoder,
            self.bench.base.fingerprint,
            self.folder / "samples",
            self.progress,
        )

        def encode(examples: list[Example]) -> list[Encoded]:
            ends = end_tokens(self.encoder.tokenizer)
            items = zip(examples, self.encoder.to_replay(examples), strict=True)
            return [_unended(i, ends) if e.index in samples.cut else i for e, i in items]

        examples = samples.examples
        written = [[example.digest, example.index in samples.cut] for example in examples]
        identity = {"written": content_hash(written), **self.encoder.identity}
        corpus, place = self._corpus(identity, iter(examples), encode, lambda: len(examples))
        known = measured_rows(corpus.identities, self.measured)
        kept = [number for number in range(len(corpus)) if number not in known]
        self._tell(where, samples.blank, len(known))
        if not kept:
            raise DataError("every text the base wrote is one that is measured on; name prompts")
        fingerprint = content_hash([identity, kept])
        return ReplayPart(source.source, source.weight, Subset(corpus, kept), fingerprint, place)

    def _corpus(
        self,
        identity: dict[str, Any],
        examples: Iterator[Example],
        encode: Callable[[list[Example]], list[Encoded]],
        count: Callable[[], float],
        enough: Enough | None = None,
        workers: int = 1,
    ) -> tuple[Corpus, Path]:
        place = self.folder / "corpus" / content_hash(identity)[:12]
        corpus = write_corpus(
            place,
            identity,
            examples,
            encode,
            vocabulary=len(self.encoder.tokenizer),
            masked=self.encoder.regime == "instruct",
            count=count,
            enough=enough,
            workers=workers,
            progress=self.progress,
        )
        return corpus, place

    def _enough(self, source: ReplaySource) -> Enough:
        """How far an endless source is read: for the arm that replays most."""
        budget, recipe = self.recipe.budget.tokens, self.recipe
        if budget is None:
            raise too_large(source)
        share = source.weight / sum(one.weight for one in recipe.data.replay)
        most = max(arm.replay for arm in recipe.arms.values())
        # A source may be a row ahead of its share.
        tokens = math.ceil(budget[-1] * most * share) + 2 * recipe.train.row_tokens
        started = any(arm.reads_activations for arm in recipe.arms.values())
        return Enough(tokens, TEXTS if started else RESERVE)

    def _tell(self, where: str, blank: int, known: int) -> None:
        told = {"are blank": blank, "are measured on": known}
        parts = [f"{count} {what}" for what, count in told.items() if count]
        if parts:
            self.progress.say(f"{where}: of the base's texts, {' and '.join(parts)}; left out")


def _unended(item: Encoded, ends: frozenset[int]) -> Encoded:
    """A text that was cut off: without its end token and what follows it."""
    stop = max((i for i, token in enumerate(item.token_ids) if token in ends), default=None)
    return Encoded(item.index, item.token_ids[:stop], item.supervised[:stop], item.supervised_bytes)
