"""vLLM in a process of its own, often in a Python of its own; and measurement by it.

`VllmProcess` is the process and the conversation with it, for measuring here and for serving
(`serve/vllm.py`); `vllm_worker.py` is its other end. `VllmEngine` measures: texts become tokens
here, by the same encoder as in process, and vLLM is sent token ids only. Greedy answers and
log-likelihoods are those of `engine.py` up to rounding: where two tokens are equally likely to
a few units in the last place, either may come first, and a greedy answer goes on differently
from there. Drawn answers come from vLLM's own generator: reproducible by their seeds, but not
the draws of `engine.py`.

On a processor the base's requests go apart from those of adapters: beside one, vLLM 0.32
answers the base with the last adapter's update. `check_batches` looks whether that is enough.

vLLM brings a torch of its own, so it is best installed apart; `LAURA_VLLM_PYTHON` is the Python
to start. Divergences need whole distributions, which vLLM does not give: `document_divergences`
is missing here.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import logging
import math
import os
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from laura.data.templates import end_tokens
from laura.engine import vllm_worker
from laura.engine.detokenizer import text_of
from laura.engine.prefix_tree import supervised
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
from laura.engine.vllm_python import INSTALL, WORKER, no_such_python, vllm_python
from laura.models.adapter_files import read_settings
from laura.models.adapters import attach, save_adapter
from laura.models.device import alone_on, free_share
from laura.models.encoding import Encoder
from laura.models.families import LLAMA, expert_of, family_of
from laura.models.load import (
    INCIDENTAL,
    check_model_folder,
    describe_model,
    load_base,
    quiet_transformers,
)
from laura.models.lora import LoraSettings, detach, lora_layers
from laura.results.errors import (
    AdapterError,
    DataError,
    LauraError,
    MissingExtraError,
    ModelError,
    StoreError,
    UsageError,
)
from laura.results.processes import how_ended
from laura.results.progress import SILENT, Bar, Progress
from laura.results.store import read_json

LOG = logging.getLogger(__name__)
ROOM = "On a processor, VLLM_CPU_KVCACHE_SPACE says how many GiB keys and values may take"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Its processes speak with one another by sockets: never by pickle.
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
    # The worker has threads; a forked process would inherit their locks.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
KEPT_LINES, TAIL_LINES, LINE_LETTERS = 400, 5, 2000
PREFIX = "laura-vllm-"
# A private folder's lock is taken right after it is made; older ones without one were left.
YOUNG_SECONDS = 60.0
# Longest path of a socket that every system takes; vLLM names its own by 36 letters.
SOCKET_LETTERS, NAME_LETTERS = 100, 36
# Values of vLLM's max_lora_rank.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Keys of a config that say nothing of the numbers computed from weights.
SILENT_KEYS = {
    *INCIDENTAL,
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
}
# Last parts of the names of the maps that adapters may change.
TARGETS = (*LLAMA.groups["all"], "qkv_proj", "gate_up_proj")
# As many adapters as vLLM computes in one batch; further ones wait in the host's memory.
MOST_AT_ONCE = 8
# Enough to keep vLLM's batch of 256 full, few enough to lose little where it is killed.
MOST_IN_WORK = 512
NOTHING: Mapping[Any, Any] = MappingProxyType({})

Message = dict[str, Any]


def model_arguments(folder: Path, config: Any, reads: int, length: int) -> dict[str, Any]:
    """Arguments of vLLM's engine for a model folder.

    Args:
        folder: The model's.
        config: Its configuration.
        reads: Most tokens that the model reads.
        length: Most tokens of prompt and answer that vLLM is asked to take.

    Raises:
        ModelError: the rotation depends on the longest length, so it would change.
    """
    overrides: dict[str, Any] = {}
    if length > reads:
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
        kind = (rope or {}).get("rope_type", (rope or {}).get("type"))
        if kind not in (None, "default", "linear", "llama3", "yarn"):
            raise ModelError(
                f"the model's rotary positions (rope_type {kind}) depend on the longest length, "
                "which vLLM has to be told otherwise than transformers; use the engine in process"
            )
        overrides["max_position_embeddings"] = length
    if not read_json(folder / "config.json").get("architectures"):
        # vLLM needs the name of the model's class, which not every config.json has.
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        overrides["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    return {
        "model": str(folder.resolve()),
        "max_model_len": length,
        "hf_overrides": overrides,
        "generation_config": "vllm",  # sampling is only what a request says
        "disable_log_stats": True,
    }


def lora_arguments(
    rank: int, count: int, kind: str, targets: Collection[str] = ()
) -> dict[str, Any]:
    """Arguments of vLLM's engine for so many adapters of at most this rank.

    Args:
        rank: The highest.
        count: How many.
        kind: The base's `model_type`.
        targets: Names of what they change; none for all that a model of this kind has.
    """
    family = family_of(kind)
    group = "all" if family.experts is None else "attention"
    return {
        "enable_lora": True,
        "max_lora_rank": next((one for one in RANKS if one >= rank), RANKS[-1]),
        "max_loras": min(count, MOST_AT_ONCE),
        # Left to itself vLLM also makes room at the output map, and then fails on the CPU
        # where log-probabilities of a prompt are asked for (0.32).
        "lora_target_modules": sorted(targets or family.groups[group]),
    }


def check_adapter(settings: LoraSettings, name: str = "it") -> None:
    """Refuse what vLLM cannot represent.

    Args:
        settings: Of an adapter, targets as full names.
        name: What it is called in the error.

    Raises:
        AdapterError: it has lengths (DoRA), rotates (OFT), has too high a rank, or maps that vLLM
            does not change.
    """
    rank, strange = _largest_rank(settings), sorted(_changed_maps(settings) - set(TARGETS))
    fault = ""
    if settings.block_size:
        fault = "rotated inputs (OFT), vLLM takes plain LoRA"
    elif settings.dora:
        fault = "trained lengths (DoRA), vLLM takes plain LoRA"
    elif rank > RANKS[-1]:
        fault = f"rank {rank}, vLLM takes at most {RANKS[-1]}"
    elif any(map(expert_of, settings.targets)):
        fault = "updates of experts, vLLM is given those of linear maps"
    elif strange:
        fault = f"{', '.join(strange)}, vLLM takes the layers' maps"
    if fault:
        raise AdapterError(
            f"{name} has {fault}; merge it into its base, or use the engine in process"
        )


def _checked(name: str, folder: Path) -> LoraSettings:
    settings = read_settings(folder)
    check_adapter(settings, f"adapter {name}")
    return settings


def _told(config: Any) -> dict[str, Any]:
    """What of a config says which numbers are computed from weights."""
    return {key: value for key, value in config.to_dict().items() if key not in SILENT_KEYS}


def _largest_rank(settings: LoraSettings) -> int:
    return max(settings.rank, *settings.rank_pattern.values(), 0)


def _changed_maps(settings: LoraSettings) -> set[str]:
    return {target.rsplit(".", 1)[-1] for target in settings.targets}


def end_ids(folder: Path, config: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, as in process."""
    from transformers import GenerationConfig

    with quiet_transformers():
        try:
            settings = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except OSError:
            settings = GenerationConfig.from_model_config(config)
    return end_tokens(tokenizer, settings)


class VllmProcess:
    """One process with one model in vLLM, and the conversation with it.

    No call waits for the process except `close` and `fault`. It has a private folder, which
    goes with it: the process removes it where this one was killed, and the next one removes
    what is left where both were.

    Args:
        setup: What it is started with, and what it is told afterwards: see `vllm_worker.py`.
        hear: Called with every message, in a thread; with None when the process has ended.
        environment: Variables that it has beside those of this process.

    Attributes:
        folder: The private folder.
        lines: The last lines of what vLLM wrote.

    Raises:
        UsageError: there is no such Python as `LAURA_VLLM_PYTHON`.
        StoreError: there is no room for a private folder.
    """

    def __init__(
        self,
        setup: Message,
        hear: Callable[[Message | None], None],
        environment: Mapping[str, str] = NOTHING,
    ) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.folder, self._lock = _private_folder()
        compiled = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
        try:
            self._process = subprocess.Popen(
                [vllm_python(), WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A Ctrl-C reaches this process alone, which ends the other one with all its own.
                start_new_session=True,
                pass_fds=(self._lock,),
                env={
                    # What torch compiles stays: made anew, a start would last longer.
                    "TORCHINDUCTOR_CACHE_DIR": str(compiled),
                    **os.environ,
                    **environment,
                    **ENVIRONMENT,
                    # vLLM leaves sockets behind where it is killed, and a file even where not.
                    "TMPDIR": str(self.folder),
                    "VLLM_RPC_BASE_PATH": str(self.folder),
                },
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            self._remove_folder()
            raise no_such_python(error) from error
        self._closing, self._closed = threading.Lock(), False
        self._outgoing: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._write, daemon=True),
            threading.Thread(target=self._read, args=(hear,), daemon=True),
            threading.Thread(target=self._keep_lines, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.send({**setup, "place": str(self.folder)})

    @property
    def pid(self) -> int:
        """Number of the process and of its group."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Say something; nothing comes of it if the process has ended.

        Raises:
            ModelError: it was closed.
        """
        if self._closed:
            raise ModelError("the vLLM engine was closed; make a new one")
        self._outgoing.put(message)

    def close(self) -> None:
        """End the process and all that it has started; may be called again, from any thread."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._outgoing.put(None)
            try:
                # Told by the end of its input, it gives shared memory back.
                self._process.wait(vllm_worker.GRACE_SECONDS + 2)
            except subprocess.TimeoutExpired:
                pass
            finally:
                if self._process.returncode != 0:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._process.pid, signal.SIGKILL)
                    self._process.wait()
                for thread in self._threads:
                    if thread is not threading.current_thread():
                        thread.join(2.0)
                self._remove_folder()

    def fault(self, message: Message | None) -> LauraError:
        """Why the process is of no more use; closes it.

        Args:
            message: Its last one; None where it ended without one.
        """
        self.close()
        if message is not None and message["kind"] == "missing":
            return MissingExtraError(f"{message['fault']}; {INSTALL}")
        words = self.how if message is None else f"vLLM failed: {message['fault']}"
        return ModelError(words + self.last_words())

    @property
    def how(self) -> str:
        """How it ended, in words for everybody; of one that was closed."""
        return f"vLLM ended by {how_ended(self._process.returncode)}"

    def last_words(self) -> str:
        """The first error that vLLM logged and the end of what it wrote, as a message's tail.

        For logs and whoever started it: it may name files and internal names.
        """
        lines = list(self.lines)
        # What vLLM's other processes met is not in the fault.
        pattern = r"ERROR .*?((?<![\w.])[A-Za-z_.]*(?:Error|Exception): \S.*)"
        found = next((match for line in lines if (match := re.search(pattern, line))), None)
        words = f" ({found[1]})" if found else ""
        if lines:
            words += "; its last words:\n" + "\n".join(f"  {x}" for x in lines[-TAIL_LINES:])
        return words + (f"\n{ROOM}" if "KV cache" in words else "")

    def _write(self) -> None:
        """Hand messages over; a process that does not read holds up nobody but this thread."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as stream:
            while (message := self._outgoing.get()) is not None:
                stream.write(json.dumps(message) + "\n")
                stream.flush()

    def _read(self, hear: Callable[[Message | None], None]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for text in stream:
                if text.endswith("\n"):  # else it was killed in the middle of a line
                    hear(json.loads(text))
        hear(None)

    def _keep_lines(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for text in stream:
                self.lines.append(text.rstrip()[:LINE_LETTERS])
                LOG.debug("vllm: %s", self.lines[-1])

    def _remove_folder(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _private_folder() -> tuple[Path, int]:
    """A folder for this user alone, and the lock that this process and its child hold.

    Folders that nobody holds any more are removed.
    """
    try:
        for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                _remove_left(left)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_SH)
    except OSError as error:
        raise StoreError(
            f"no private folder can be made ({error}); set TMPDIR to a folder on a disk with room"
        ) from error
    if len(str(folder)) + 1 + NAME_LETTERS > SOCKET_LETTERS:
        folder.rmdir()
        os.close(lock)
        raise UsageError(
            f"{folder} is too long for the path of a socket; set TMPDIR to a shorter folder"
        )
    return folder, lock


def _remove_left(folder: Path) -> None:
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        facts = os.fstat(lock)
        if facts.st_uid == os.getuid() and time.time() - facts.st_mtime > YOUNG_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


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
        rank: Largest rank of adapters that are added later, one at a time; 0 for none.
        shared: A device that this process uses too. Of a GPU vLLM then takes what is free when
            it starts, and while it is asleep it holds next to nothing.
        tokenizer: None for the folder's.

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
        rank: int = 0,
        shared: torch.device | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.progress, self.precision = progress, precision
        check_model_folder(folder)
        config, own = describe_model(folder)
        self.tokenizer = own if tokenizer is None else tokenizer
        self.encoder = Encoder(self.tokenizer, config)
        self._end_ids = end_ids(folder, config, self.tokenizer)
        self._config, self._folder = config, folder
        self._sleeps = shared is not None and shared.type == "cuda"
        self._adapters = set[str]()
        reads = self.encoder.context_tokens
        arguments: dict[str, Any] = {
            # A scored text is one token longer than what the model reads, and vLLM insists on
            # a new token behind it.
            **model_arguments(folder, config, reads, reads + 2),
            "dtype": str(precision).removeprefix("torch."),
            "max_num_batched_tokens": row_tokens,
            "max_num_seqs": min(256, row_tokens),
        }
        given = dict(adapters or {})
        settings = {name: _checked(name, path) for name, path in given.items()}
        if settings:
            rank = max(map(_largest_rank, settings.values()))
            targets = set[str]().union(*map(_changed_maps, settings.values()))
            arguments |= lora_arguments(rank, len(settings), config.model_type, targets)
        elif rank:
            arguments |= lora_arguments(rank, 1, config.model_type)
        if cache_bytes is not None:
            arguments["kv_cache_memory_bytes"] = cache_bytes
        environment: Mapping[str, str] = NOTHING
        if shared is not None and self._sleeps:
            environment = alone_on(shared)
            arguments["enable_sleep_mode"] = True
            arguments["gpu_memory_utilization"] = free_share(shared)
        self._heard: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        with progress.bar("starting vLLM", 1) as bar:
            setup = {"engine": arguments, "arguments": []}
            self._process = VllmProcess(setup, self._heard.put, environment)
            try:
                ready = self._receive()
                for name, path in given.items():
                    self.add_adapter(name, path)
            except BaseException:
                self.close()
                raise
            bar.advance()
        self.version: str = ready["ready"]
        self._base_apart: bool = ready["cpu"]

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; the engine is of no use afterwards."""
        self._process.close()

    def add_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter; a name stands for the same weights as long as the engine lives.

        Raises:
            AdapterError: it cannot be read, or vLLM cannot represent or load it.
        """
        _checked(name, folder)
        self._process.send({"add_lora": name, "folder": str(folder.resolve())})
        if refused := self._receive()["refused"]:
            raise AdapterError(f"vLLM cannot load adapter {name}: {refused}")
        self._adapters.add(name)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter."""
        self._adapters.remove(name)
        self._process.send({"remove_lora": name})

    def hold(self, folder: Path) -> bool:
        """Answer with the weights of this folder from now on, where they can be exchanged.

        They cannot where the folder's config is another one, nor where the output map is the
        embedding too: vLLM 0.32 then goes on with the old output map (seen on a processor).

        Returns:
            False where another engine has to be started on the folder.

        Raises:
            ModelError: the folder is no usable model, or vLLM cannot load it.
        """
        if folder != self._folder:
            check_model_folder(folder)
            config, _ = describe_model(folder)
            if config.tie_word_embeddings or _told(config) != _told(self._config):
                return False
            self._order({"weights": str(folder.resolve())})
            self._folder, self._end_ids = folder, end_ids(folder, config, self.tokenizer)
        return True

    def sleep(self) -> None:
        """Leave the memory of a GPU that is shared; nothing else may be asked until `wake`."""
        if self._sleeps:
            self._order({"asleep": True})

    def wake(self) -> None:
        """Take it again.

        Raises:
            ModelError: it is not free.
        """
        if self._sleeps:
            self._order({"asleep": False})

    def _order(self, order: Message) -> None:
        self._process.send(order)
        if refused := self._receive()["refused"]:
            self.close()
            (kind, what), *_ = order.items()
            raise ModelError(f"vLLM does not carry out {kind} {what}: {refused}")

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
            best = all(value >= likeliest[0][1] for value, likeliest in message["prompt"])
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
        targets = [place + 1 for place in supervised(document, None).asked]
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
            known = ", ".join(sorted(self._adapters)) or "none"
            raise UsageError(f"the engine has no adapter {adapter!r}; it has {known}")
        return {
            "prompt": tokens,
            "first": first,
            "adapter": adapter,
            "sampling": sampling,
            "salt": None,
            "stream": False,
        }

    def _finished(self, request: GenerateRequest, message: Message) -> GenerateAnswer:
        tokens = message["tokens"]
        ended = bool(tokens) and tokens[-1] in self._end_ids
        finish = "end" if ended else message["reason"]
        text = text_of(self.tokenizer, tokens[:-1] if ended else tokens, request.stop)
        nats = tuple(value for value, _ in message["logprobs"])
        return GenerateAnswer(text, len(tokens), finish, nats, tuple(tokens))

    def _ask(
        self, requests: Sequence[Message], take: Callable[[int, Message], None], bar: Bar
    ) -> None:
        """Have all requests answered; `take` gets each answer with its request's place."""
        try:
            for places in self._groups(requests):
                sent = answered = 0
                while answered < len(places):
                    for place in places[sent : answered + MOST_IN_WORK]:
                        self._process.send({"add": str(place), **requests[place]})
                        sent += 1
                    message = self._receive()
                    if "refused" in message:
                        raise ModelError(f"vLLM refuses a request: {message['refused']}")
                    for output in message["outputs"]:
                        place = int(output["id"])
                        _check_whole(output, requests[place])
                        take(place, output)
                        answered += 1
                        bar.advance()
        except BaseException:
            # Answers still on their way would be taken for those of the next requests.
            self.close()
            raise

    def _groups(self, requests: Sequence[Message]) -> Sequence[Sequence[int]]:
        """Places of the requests that may share a batch."""
        if not self._base_apart:
            return [range(len(requests))]
        base, others = list[int](), list[int]()
        for place, request in enumerate(requests):
            (base if request["adapter"] is None else others).append(place)
        return base, others

    def _receive(self) -> Message:
        message = self._heard.get()
        if message is None or "fault" in message:
            raise self._process.fault(message)
        return message


def _check_whole(output: Message, request: Message) -> None:
    """Refuse half an answer, such as that of a request vLLM gave up."""
    scored = "prompt_logprobs" in request["sampling"]
    wanted = len(request["prompt"]) - request["first"] if scored else 0
    if output["reason"] not in ("stop", "length") or len(output["prompt"]) != wanted:
        raise ModelError(
            f"vLLM broke off a request of {len(request['prompt'])} tokens ({output['reason']})"
        )


# Nats a token by which rounding alone may move an answer: a batch adds in another order.
ROUNDING = {torch.float32: 0.02, torch.bfloat16: 0.5, torch.float16: 0.25}
# The adapters must move the answers by so many times that, or nothing can be told.
CLEAR = 4
TEXT = "The quick brown fox jumps over the lazy dog, and then it goes home to sleep until noon."
CUTS = (4, 8, 12)  # words before the scored ones


def check_batches(folder: Path, precision: torch.dtype) -> str:
    """Does vLLM answer a base and its adapters in company as alone?

    Adapters that turn the base's answers upside down fill every place of a batch, since vLLM
    0.32 showed its mistake in the last place only. Each of them, and the base, is asked alone,
    and then all of them at once, as in every measurement.

    Args:
        folder: The base's.
        precision: Number format of weights and arithmetic.

    Returns:
        What is wrong, in words; empty where nothing is.

    Raises:
        LauraError: vLLM cannot be started, or fails.
    """
    words, rounding = TEXT.split(), ROUNDING[precision]
    with tempfile.TemporaryDirectory() as place:
        probes = _write_probes(folder, Path(place))
        names = (None, *probes)
        asked = [
            ScoreRequest(" ".join(words[:cut]), " " + " ".join(words[cut:]), name)
            for name in names
            for cut in CUTS
        ]
        with VllmEngine(folder, precision, probes) as engine:
            alone = [engine.score([request])[0] for request in asked]
            together = engine.score(asked)
    base = alone[: len(CUTS)]
    for number, name in enumerate(names):
        own = slice(number * len(CUTS), (number + 1) * len(CUTS))
        if name and not _distance(alone[own], base) > CLEAR * rounding:
            return f"vLLM answers the same through {name} as without it"
        if not _distance(alone[own], together[own]) <= rounding:
            return f"vLLM answers {name or 'the base'} in company otherwise than alone"
    return ""


def _distance(some: Sequence[ScoreAnswer], others: Sequence[ScoreAnswer]) -> float:
    """Mean difference of a token, nats."""
    pairs = zip(some, others, strict=True)
    nats = sum(abs(one.loglikelihood - other.loglikelihood) for one, other in pairs)
    return nats / sum(one.tokens for one in some)


def _write_probes(folder: Path, place: Path) -> dict[str, Path]:
    """Adapters of rank 1 whose updates are as strong as the maps themselves."""
    base, settings = load_base(str(folder), device="cpu"), LoraSettings(rank=1, alpha=1.0)
    probes = {f"adapter {seed}": place / str(seed) for seed in range(MOST_AT_ONCE)}
    for seed, path in enumerate(probes.values()):
        attach(base.model, settings, seed)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in lora_layers(base.model).values():
                layer.A.normal_(std=1 / math.sqrt(layer.A.shape[-1]), generator=draw)
                layer.B.normal_(generator=draw)
        save_adapter(base.model, path, settings, str(folder))
        detach(base.model)
    return probes
