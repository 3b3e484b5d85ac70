"""Measurement by vLLM, which runs in a process of its own and often in a Python of its own.

Texts become tokens here, by the same encoder as in process, and vLLM is sent token
ids only. Greedy answers and log-likelihoods are those of `engine.py` up to rounding:
where two tokens are equally likely to a few units in the last place, either may come
first, and a greedy answer goes on differently from there. Drawn answers come from
vLLM's own generator: reproducible by their seeds, but not the draws of `engine.py`.

vLLM brings a torch of its own, so it is best installed apart; `LAURA_VLLM_PYTHON` is
the Python to start. Divergences need whole distributions, which vLLM does not give:
`document_divergences` is missing here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from laura.data.end_tokens import end_tokens
from laura.engine.requests import (
    FORGET,
    GenerateAnswer,
    GenerateFound,
    GenerateRequest,
    ScoreAnswer,
    ScoreFound,
    ScoreRequest,
    TokenDocument,
)
from laura.engine.vllm_limits import (
    RANKS,
    adapter_fault,
    changed_maps,
    largest_rank,
    longer_positions,
)
from laura.engine.vllm_process import VllmProcess
from laura.models.adapter_files import read_settings
from laura.models.encoding import Encoder
from laura.models.load import check_model_folder, describe_model, quiet_transformers
from laura.results.errors import AdapterError, DataError, ModelError, UsageError
from laura.results.progress import SILENT, Bar, Progress

# Enough to keep vLLM's batch of 256 full, few enough to lose little where it is killed.
MOST_IN_WORK = 512
MOST_ADAPTERS_AT_ONCE = 8
# On a processor vLLM would take nearly all memory there is, and compile for a minute.
ON_PROCESSOR = {"kv_cache_memory_bytes": 2 * 2**30, "enforce_eager": True}
NOTHING: Mapping[int, Any] = MappingProxyType({})

Message = dict[str, Any]


class VllmEngine:
    """Measures a model folder with vLLM; to be used in `with`, or closed.

    Args:
        folder: The model's folder, as `resolve_model` finds it.
        precision: Number format of weights and arithmetic. bfloat16 is all of it,
            where the engine in process keeps float32 weights (mixed precision).
        adapters: PEFT folders by the names that requests use.
        row_tokens: Most tokens of a pass. Logits of whole prompts exist where texts
            are scored, so memory grows with it.
        progress: Where work is reported.
        cache_bytes: Memory for keys and values. None: on a GPU what vLLM takes, nine
            tenths of all less the model; on a processor 2 GiB, or
            `VLLM_CPU_KVCACHE_SPACE` if set, which wins there over everything else.

    Attributes:
        version: vLLM's version.

    Raises:
        ModelError: the folder is no usable model, or vLLM cannot load it.
        AdapterError: an adapter cannot be read, or vLLM cannot represent it.
        UsageError: there is no such Python as `LAURA_VLLM_PYTHON`.
        MissingExtraError: that Python has no vLLM, or too old a one.
    """

    def __init__(
        self,
        folder: Path,
        precision: torch.dtype = torch.float32,
        adapters: Mapping[str, Path] | None = None,
        row_tokens: int = 2048,
        progress: Progress = SILENT,
        cache_bytes: int | None = None,
    ) -> None:
        self.progress, self.precision = progress, precision
        check_model_folder(folder)
        config, self.tokenizer = describe_model(folder)
        self.encoder = Encoder(self.tokenizer, config)
        self._end_ids = end_ids(folder, config, self.tokenizer)
        self._adapters = dict(adapters or {})
        # A scored text is one token longer than what the model reads, and vLLM insists on
        # a new token behind it.
        length = self.encoder.context_tokens + 2
        arguments: dict[str, Any] = {
            "model": str(folder.resolve()),
            "dtype": str(precision).removeprefix("torch."),
            "max_model_len": length,
            "hf_overrides": longer_positions(config, length),
            "max_num_batched_tokens": row_tokens,
            "max_num_seqs": min(256, row_tokens),
            "generation_config": "vllm",  # sampling is only what a request says
            "disable_log_stats": True,
            **_lora_arguments(self._adapters),
        }
        if cache_bytes is not None:
            arguments["kv_cache_memory_bytes"] = cache_bytes
        setup = {
            "engine": arguments,
            "adapters": {name: str(path.resolve()) for name, path in self._adapters.items()},
            "on_processor": ON_PROCESSOR,
        }
        with progress.bar("starting vLLM", 1) as bar:
            self._process = VllmProcess(setup)
            bar.advance()
        self.version = self._process.version

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; the engine is of no use afterwards."""
        self._process.close()

    def score(
        self,
        requests: Sequence[ScoreRequest],
        *,
        known: Mapping[int, ScoreAnswer] = NOTHING,
        found: ScoreFound = FORGET,
    ) -> list[ScoreAnswer]:
        """Log-likelihood of every continuation, encoded exactly as lm-eval 0.4.13 does.

        Equal requests are computed once. `greedy` also counts a token as likely as the
        most likely one.

        Raises:
            DataError: a continuation has no tokens, or more than the model reads.
            UsageError: an adapter's name is unknown.
            ModelError: vLLM failed or was killed.
        """
        numbers: dict[tuple[str | None, int, tuple[int, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            if number not in known:
                before, after = self.encoder.pair(request.context, request.continuation)
                tokens = (before + after)[-(self.encoder.context_tokens + 1) :]
                key = (request.adapter, len(tokens) - len(after), tuple(tokens))
                numbers.setdefault(key, []).append(number)
        keys, answers = list(numbers), dict(known)
        asked = [self._reading(list(tokens), first, adapter) for adapter, first, tokens in keys]

        def take(place: int, message: Message) -> None:
            nats = [value for value, _ in message["prompt"]]
            best = all(likely for _, likely in message["prompt"])
            for number in numbers[keys[place]]:
                answers[number] = ScoreAnswer(sum(nats), best, len(nats))
                found(number, answers[number])

        with self.progress.bar("scoring", len(keys), "documents") as bar:
            self._ask(asked, take, bar)
        return [answers[number] for number in range(len(requests))]

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        known: Mapping[int, GenerateAnswer] = NOTHING,
        found: GenerateFound = FORGET,
    ) -> list[GenerateAnswer]:
        """The answer to every prompt; prompts are encoded and cut as lm-eval does.

        Raises:
            UsageError: max_new_tokens is below 1 or leaves no room for a prompt, or an
                adapter's name is unknown.
            DataError: a prompt is empty.
            ModelError: vLLM failed or was killed.
        """
        numbers = [number for number in range(len(requests)) if number not in known]
        answers = dict(known)
        asked = [self._continuing(requests[number]) for number in numbers]

        def take(place: int, message: Message) -> None:
            number = numbers[place]
            answers[number] = self._finished(requests[number], message)
            found(number, answers[number])

        with self.progress.bar("generating", len(numbers), "answers") as bar:
            self._ask(asked, take, bar)
        return [answers[number] for number in range(len(requests))]

    def document_losses(
        self, documents: Sequence[TokenDocument], adapter: str | None = None
    ) -> list[list[float]]:
        """Nats of every supervised token of every document, in order.

        The first token of a document is never among them.

        Raises:
            DataError: a document is longer than the model reads, or its marks do not fit.
            UsageError: the adapter's name is unknown.
            ModelError: vLLM failed or was killed.
        """
        targets = [self._targets(document) for document in documents]
        numbers = [number for number, places in enumerate(targets) if places]
        asked = [
            self._reading(
                documents[number].token_ids[: targets[number][-1] + 1], targets[number][0], adapter
            )
            for number in numbers
        ]
        losses: list[list[float]] = [[] for _ in documents]

        def take(place: int, message: Message) -> None:
            places = targets[numbers[place]]
            losses[numbers[place]] = [-message["prompt"][i - places[0]][0] for i in places]

        with self.progress.bar("measuring loss", len(numbers), "documents") as bar:
            self._ask(asked, take, bar)
        return losses

    def _targets(self, document: TokenDocument) -> list[int]:
        """Places of the tokens whose loss is asked for."""
        count, most = len(document.token_ids), self.encoder.context_tokens + 1
        if count != len(document.supervised):
            raise DataError(
                f"document {document.index} has {count} tokens and {len(document.supervised)} "
                "supervision marks; both must be equally many"
            )
        targets = [i for i, asked in enumerate(document.supervised) if asked and i > 0]
        if targets and targets[-1] >= most:
            raise DataError(
                f"document {document.index} has {count} tokens, vLLM reads at most {most} "
                "with this model; cut it"
            )
        return targets

    def _reading(self, tokens: list[int], first: int, adapter: str | None) -> Message:
        """Ask for the log-probabilities of a text's tokens from place `first` on."""
        sampling = {"max_tokens": 1, "prompt_logprobs": 1, "temperature": 0, "detokenize": False}
        return self._request(tokens, sampling, adapter, first)

    def _continuing(self, request: GenerateRequest) -> Message:
        stop = [text for text in request.stop if text]
        sampling = {
            "max_tokens": request.max_new_tokens,
            "stop": stop,
            "detokenize": bool(stop),
            "skip_special_tokens": False,  # a special token may be a stop text
            "ignore_eos": True,  # what ends an answer is known here
            "stop_token_ids": sorted(self._end_ids),
            "temperature": request.temperature,
            "logprobs": 0 if request.logprobs else None,
        }
        if request.temperature > 0:
            sampling |= {"top_p": request.top_p, "top_k": request.top_k, "seed": request.seed}
        prompt = self.encoder.prompt(request.prompt, request.max_new_tokens)
        return self._request(prompt, sampling, request.adapter)

    def _request(
        self, tokens: list[int], sampling: dict[str, Any], adapter: str | None, first: int = 0
    ) -> Message:
        if adapter is not None and adapter not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise UsageError(f"the engine has no adapter {adapter!r}; it has {known}")
        return {"prompt": tokens, "first": first, "adapter": adapter, "sampling": sampling}

    def _finished(self, request: GenerateRequest, message: Message) -> GenerateAnswer:
        tokens = message["tokens"]
        ended = bool(tokens) and tokens[-1] in self._end_ids
        finish = "end" if ended else message["reason"]
        text = self.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        for stop in request.stop:
            text = text.split(stop)[0] if stop else text
        nats = tuple(value for value, _ in message["logprobs"])
        return GenerateAnswer(text, len(tokens), finish, nats, tuple(tokens))

    def _ask(
        self, requests: Sequence[Message], take: Callable[[int, Message], None], bar: Bar
    ) -> None:
        """Have all requests answered; `take` gets each answer with its request's place.

        Those of the base come first and apart: beside an adapter's, vLLM 0.32 on a
        processor answers them with the last adapter's update.
        """
        base = [place for place, request in enumerate(requests) if request["adapter"] is None]
        others = [place for place, request in enumerate(requests) if request["adapter"] is not None]
        try:
            for places in (base, others):
                sent = 0
                for answered in range(len(places)):
                    while sent < min(len(places), answered + MOST_IN_WORK):
                        place = places[sent]
                        self._process.send({"number": place, **requests[place]})
                        sent += 1
                    message = self._process.receive()
                    _check(message, requests[message["number"]])
                    take(message["number"], message)
                    bar.advance()
        except BaseException:
            # Answers still on their way would be taken for those of the next requests.
            self.close()
            raise


def _check(message: Message, request: Message) -> None:
    """Refuse half an answer, such as that of a request vLLM gave up."""
    scored = "prompt_logprobs" in request["sampling"]
    wanted = len(request["prompt"]) - request["first"] if scored else 0
    if message["reason"] not in ("stop", "length") or len(message["prompt"]) != wanted:
        raise ModelError(
            f"vLLM broke off a request of {len(request['prompt'])} tokens ({message['reason']})"
        )


def end_ids(folder: Path, config: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, as in process."""
    from transformers import GenerationConfig

    with quiet_transformers():
        try:
            settings = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except OSError:
            settings = GenerationConfig.from_model_config(config)
    return end_tokens(tokenizer, settings)


def _lora_arguments(adapters: Mapping[str, Path]) -> dict[str, Any]:
    """What vLLM is told of the adapters to come.

    Raises:
        AdapterError: one cannot be read, or vLLM cannot represent it.
    """
    if not adapters:
        return {}
    highest, targets = 0, set[str]()
    for name, path in adapters.items():
        settings = read_settings(path)
        fault = adapter_fault(settings)
        if fault:
            raise AdapterError(
                f"adapter {name} has {fault}; merge it into its base and evaluate that, or use "
                "the engine in process"
            )
        highest, targets = max(highest, largest_rank(settings)), targets | changed_maps(settings)
    return {
        "enable_lora": True,
        "max_lora_rank": next(rank for rank in RANKS if rank >= highest),
        "max_loras": min(len(adapters), MOST_ADAPTERS_AT_ONCE),
        # Left to itself vLLM also makes room at the output map, and then fails on the CPU
        # where log-probabilities of a prompt are asked for (0.32).
        "lora_target_modules": sorted(targets),
    }
