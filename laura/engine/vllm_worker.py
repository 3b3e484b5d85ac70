"""A worker process: one model in vLLM, spoken to in lines of JSON.

Started by `vllm.py` only, by its path and with the Python that has vLLM: Laura need not be
installed there, so only the standard library and vLLM are used here. The first line of standard
input is the setup, every further one a message, read in order:

    {"add_lora": NAME, "folder": PATH}      load an adapter
    {"remove_lora": NAME}                   forget it
    {"add": ID, "prompt": [...], ...}       begin a request, see `_Worker.add`
    {"abort": ID}                           end a request; nothing more is told of it
    {"weights": PATH}                       take the weights of another folder of the same shape
    {"asleep": true or false}               give a GPU's memory back, or take it again

So whatever was aborted has left vLLM's batch before anything that was added later enters it.
On standard output come, a line each:

    {"ready": VERSION, "cpu": ..., "length": ...}    the model is loaded
    {"lora": NAME, "refused": REASON or null}        what came of an adapter
    {"order": KIND, "refused": REASON or null}       of weights, or of sleep
    {"refused": REASON, "id": ID}                    vLLM does not take this request
    {"outputs": [...]}                               what one step brought
    {"fault": WORDS, "kind": "missing" or "broken"}  the last line: the worker ends

When the input ends, nobody asks any more, and the worker ends with all processes of vLLM.

Called with `--version`, it prints vLLM's version, which it reads without importing all of vLLM.
"""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import itertools
import json
import multiprocessing
import os
import queue
import re
import runpy
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from typing import IO, Any

VERSION_ONLY = "--version"
# Some arguments and the reading of an adapter's patterns are as in this version.
OLDEST = (0, 32)
# vLLM left to itself gives its shared memory back; killed, it leaves it behind.
GRACE_SECONDS = 10.0
# What goes before the given arguments. Answers keep to grammars as in Laura's own engine. On a
# processor vLLM would take nearly all memory there is, and compile for a minute.
GRAMMARS = '--structured-outputs-config={"backend": "guidance"}'
DEFAULTS = {
    True: ("--dtype=float32", "--enforce-eager", f"--kv-cache-memory-bytes={2 * 2**30}", GRAMMARS),
    False: ("--dtype=bfloat16", GRAMMARS),
}

Message = dict[str, Any]


class _MissingError(Exception):
    """There is no vLLM that can be used."""


class _Line:
    """Sends messages, one a line; from any thread."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, **message: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()


def main() -> int:
    """Answer until the input ends; the exit code is 0 where nothing went wrong."""
    if VERSION_ONLY in sys.argv:
        try:
            sys.stdout.write(_version())
        except _MissingError as error:
            sys.exit(str(error))
        return 0
    # A Ctrl-C is the asking process's matter, and so is a SIGTERM to all of a service. The
    # latter has a handler, since vLLM's own processes would inherit that it is ignored.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    # vLLM writes to standard output; that must not get between the messages.
    line = _Line(os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    setup = json.loads(sys.stdin.readline())
    # Registered first, called last: when vLLM has ended.
    atexit.register(shutil.rmtree, setup["place"], True)
    messages: queue.Queue[Message | None] = queue.Queue()
    threading.Thread(target=_listen, args=(messages, setup["place"]), daemon=True).start()
    try:
        _Worker(setup, line).run(messages)
    except _MissingError as error:
        line.send(fault=str(error), kind="missing")
        return 1
    except Exception as error:
        line.send(fault=f"{type(error).__name__}: {error}", kind="broken")
        raise
    return 0


def _listen(messages: queue.Queue[Message | None], place: str) -> None:
    for text in sys.stdin:
        messages.put(json.loads(text))
    messages.put(None)
    time.sleep(GRACE_SECONDS)
    # It still loads or computes, perhaps in processes that would live on.
    shutil.rmtree(place, ignore_errors=True)
    _kill_all()


def _kill_all() -> None:
    """End this process with its whole group, if the group is its own."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


class _Worker:
    """The loaded model, its adapters, and the requests in work.

    Args:
        setup: `engine` holds arguments of vLLM's `EngineArgs`; `arguments` further ones, as on
            vLLM's command line.
        line: Where answers go.
    """

    def __init__(self, setup: Message, line: _Line) -> None:
        vllm, parts = _import_vllm()
        self._line, self._sampling = line, vllm.SamplingParams
        self._prompt, self._lora = parts["inputs"].tokens_input, parts["lora.request"].LoRARequest
        self._kinds = parts["sampling_params"].RequestOutputKind
        self._grammar = parts["sampling_params"].StructuredOutputsParams
        self._loras: dict[str, Any] = {}
        self._lora_ids = itertools.count(1)
        self._firsts: dict[str, int] = {}
        self._ending = False
        cpu = bool(parts["platforms"].current_platform.is_cpu())
        parser = parts["utils.argparse_utils"].FlexibleArgumentParser()
        given = vllm.EngineArgs.add_cli_args(parser).parse_args(
            [*DEFAULTS[cpu], *setup["arguments"]]
        )
        arguments = argparse.Namespace(**{**vars(given), **setup["engine"]})
        self._engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs.from_cli_args(arguments))
        # Asked for here: of one that has ended meanwhile nothing would be known later.
        children = {child.sentinel: child for child in multiprocessing.active_children()}
        threading.Thread(target=self._watch, args=(children,), daemon=True).start()
        length = self._engine.model_config.max_model_len
        line.send(ready=vllm.__version__, cpu=cpu, length=length)

    def run(self, messages: queue.Queue[Message | None]) -> None:
        """Take messages as they come, tell what every step brings, until the last message."""
        while True:
            while not messages.empty() or not self._engine.has_unfinished_requests():
                message = messages.get()
                if message is None:
                    self._ending = True
                    return
                if "add_lora" in message:
                    self.add_lora(message["add_lora"], message["folder"])
                elif "remove_lora" in message:
                    if lora := self._loras.pop(message["remove_lora"], None):
                        self._engine.remove_lora(lora.lora_int_id)
                elif "abort" in message:
                    self._engine.abort_request([message["abort"]])
                    self._firsts.pop(message["abort"], None)
                elif "weights" in message:
                    self._order("weights", self.load, message["weights"])
                elif "asleep" in message:
                    self._order("asleep", self.sleep, message["asleep"])
                else:
                    self.add(message)
            if outputs := self._engine.step():
                self._line.send(outputs=[self._told(output) for output in outputs])

    def add_lora(self, name: str, folder: str) -> None:
        """Load an adapter; its files are needed again where vLLM has room for fewer."""
        lora = self._lora(name, next(self._lora_ids), folder)
        try:
            self._engine.add_lora(lora)
        except Exception as error:
            self._line.send(lora=name, refused=str(error) or type(error).__name__)
        else:
            self._loras[name] = lora
            self._line.send(lora=name, refused=None)

    def load(self, folder: str) -> None:
        """Exchange all weights; keys and values of the old ones are of no use any more."""
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self._engine.reset_prefix_cache()

    def sleep(self, asleep: bool) -> None:
        """Give the GPU's memory up, weights to the host's, keys and values for good; or take it."""
        if asleep:
            self._engine.sleep(1)
        else:
            self._engine.wake_up()

    def _order(self, kind: str, carry_out: Callable[[Any], None], what: Any) -> None:
        try:
            carry_out(what)
        except Exception as error:
            self._line.send(order=kind, refused=str(error) or type(error).__name__)
        else:
            self._line.send(order=kind, refused=None)

    def add(self, message: Message) -> None:
        """Begin a request: `prompt` token ids, `sampling`, `stream`, `adapter`, `salt`, `first`.

        Prompts share the prefix cache only under the same salt. Where the prompt's
        log-probabilities are wanted, they are told from the token at `first` on.
        """
        number, adapter = message["add"], message["adapter"]
        kind = self._kinds.DELTA if message["stream"] else self._kinds.FINAL_ONLY
        self._firsts[number] = message["first"]
        grammar = message["sampling"].pop("structured_outputs", None)
        try:
            held = {"structured_outputs": self._grammar(**grammar)} if grammar else {}
            self._engine.add_request(
                number,
                self._prompt(message["prompt"], cache_salt=message["salt"]),
                self._sampling(**message["sampling"], **held, output_kind=kind),
                lora_request=None if adapter is None else self._loras[adapter],
            )
        except Exception as error:
            del self._firsts[number]
            self._line.send(refused=str(error) or type(error).__name__, id=number)

    def _told(self, output: Any) -> Message:
        """New tokens with their log-probabilities, and those of the prompt where they are there."""
        number, new = output.request_id, output.outputs[0]
        first = self._firsts.pop(number) if output.finished else self._firsts[number]
        read = (output.prompt_logprobs or [])[first:]
        return {
            "id": number,
            "tokens": list(new.token_ids),
            "reason": new.finish_reason,
            "cached": output.num_cached_tokens or 0,
            "logprobs": _scores(new.token_ids, new.logprobs or []),
            "prompt": _scores(output.prompt_token_ids[first:], read),
        }

    def _watch(self, children: dict[Any, Any]) -> None:
        """End where a process of vLLM has ended: who waits for its answer would wait for ever."""
        while children:
            for sentinel in connection.wait(list(children)):
                child = children.pop(sentinel)
                child.join()
                code = child.exitcode or 0
                if child.exitcode != 0 and not self._ending:
                    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
                    self._line.send(fault=f"{child.name} ended by {how}", kind="broken")
                    _kill_all()


def _scores(tokens: Any, listed: Any) -> list[Any]:
    """Of every token its log-probability and the likeliest tokens with theirs, best first.

    None stands for the first token of a prompt: nothing comes before it.
    """
    return [
        entries
        and [
            entries[token].logprob,
            sorted(((i, e.logprob) for i, e in entries.items()), key=lambda one: (-one[1], one[0])),
        ]
        for token, entries in zip(tokens, listed, strict=False)
    ]


def _version() -> str:
    """Version of vLLM, read from its file of that name."""
    # This file's folder is searched first, and `vllm` and `requests` there are Laura's.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        raise _MissingError(f"{sys.executable} has no vLLM")
    version: str = runpy.run_path(os.path.join(os.path.dirname(found.origin), "_version.py"))[
        "__version__"
    ]
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise _MissingError(f"{sys.executable} has vLLM {version}, older than {oldest}")
    return version


def _import_vllm() -> tuple[Any, dict[str, Any]]:
    """The library and some of its modules, in a version whose words are known here."""
    _version()
    names = ("inputs", "lora.request", "platforms", "sampling_params", "utils.argparse_utils")
    try:
        vllm = importlib.import_module("vllm")
        parts = {name: importlib.import_module(f"vllm.{name}") for name in names}
    except ImportError as error:
        raise _MissingError(f"{sys.executable} cannot import vllm ({error})") from error
    return vllm, parts


if __name__ == "__main__":
    sys.exit(main())
