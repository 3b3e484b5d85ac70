"""A worker process: one model in vLLM, which another process asks by lines of JSON.

Started by `vllm_engine.py` only, by its path and with the Python that has vLLM:
Laura need not be installed there, so only the standard library and vLLM are used
here. The first line of standard input is the setup, every further one a request;
the first line of standard output says that the model is loaded, every further one
is an answer or the fault that ended the worker. When the input ends, nobody asks
any more, and the worker ends with all processes of vLLM.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import sys
import threading
import time
from typing import IO, Any

# Some arguments and the reading of an adapter's patterns are as in this version.
OLDEST = (0, 32)
# vLLM left to itself gives its shared memory back; killed, it leaves it behind.
GRACE_SECONDS = 10.0


# None: the input has ended.
Requests = queue.Queue[dict[str, Any] | None]


class _Refusal(Exception):
    """What the user can mend."""


class _Line:
    """Sends messages, one a line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def send(self, **message: Any) -> None:
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()


def main() -> int:
    """Answer until the input ends; the exit code is 0 where nothing went wrong."""
    # A Ctrl-C is the asking process's matter.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # vLLM writes to standard output; that must not get between the messages.
    line = _Line(os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    setup = json.loads(sys.stdin.readline())
    requests: Requests = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    try:
        _Work(setup, line).carry_on(requests)
    except _Refusal as error:
        line.send(fault=str(error), kind="missing")
        return 1
    except Exception as error:
        line.send(fault=f"{type(error).__name__}: {error}", kind="broken")
        raise
    return 0


def _listen(requests: Requests) -> None:
    for text in sys.stdin:
        requests.put(json.loads(text))
    requests.put(None)
    time.sleep(GRACE_SECONDS)
    if os.getpgrp() == os.getpid():
        # It still loads or computes, perhaps in processes that would live on.
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


class _Work:
    """The loaded model, and the requests in work."""

    def __init__(self, setup: dict[str, Any], line: _Line) -> None:
        vllm, parts = _import_vllm()
        self._line, self._sampling = line, vllm.SamplingParams
        self._prompt = parts["inputs"].tokens_input
        self._last_only = parts["sampling_params"].RequestOutputKind.FINAL_ONLY
        self._adapters = {
            name: parts["lora.request"].LoRARequest(name, number, folder)
            for number, (name, folder) in enumerate(setup["adapters"].items(), start=1)
        }
        arguments = setup["engine"]
        if parts["platforms"].current_platform.is_cpu():
            arguments = {**setup["on_processor"], **arguments}
        self._engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**arguments))
        self._firsts: dict[str, int] = {}
        line.send(ready=vllm.__version__)

    def carry_on(self, requests: Requests) -> None:
        """Take requests as they come, answer each as soon as it is done, until the last."""
        while True:
            while not requests.empty() or not self._engine.has_unfinished_requests():
                request = requests.get()
                if request is None:
                    return
                self._begin(request)
            for output in self._engine.step():
                if output.finished:
                    self._answer(output)

    def _begin(self, request: dict[str, Any]) -> None:
        number, adapter = str(request["number"]), request["adapter"]
        self._firsts[number] = request["first"]
        self._engine.add_request(
            number,
            self._prompt(request["prompt"]),
            self._sampling(**request["sampling"], output_kind=self._last_only),
            lora_request=None if adapter is None else self._adapters[adapter],
        )

    def _answer(self, output: Any) -> None:
        """Send new tokens with their log-probabilities, and those of the prompt's last tokens."""
        new, first = output.outputs[0], self._firsts.pop(output.request_id)
        self._line.send(
            number=int(output.request_id),
            tokens=list(new.token_ids),
            reason=new.finish_reason,
            logprobs=_of_tokens(new.token_ids, new.logprobs),
            prompt=_of_tokens(
                output.prompt_token_ids[first:], (output.prompt_logprobs or [])[first:]
            ),
        )


def _of_tokens(tokens: Any, listed: Any) -> list[tuple[float, bool]]:
    """Of every token its log-probability, and whether no other one is likelier."""
    return [
        (entry[token].logprob, entry[token].logprob >= max(e.logprob for e in entry.values()))
        for token, entry in zip(tokens, listed or [], strict=False)
    ]


def _import_vllm() -> tuple[Any, dict[str, Any]]:
    """The library and some of its modules, in a version whose words are known here."""
    # This file's folder is searched first, and `requests` there is Laura's.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    import importlib

    try:
        vllm = importlib.import_module("vllm")
        names = ("inputs", "lora.request", "platforms", "sampling_params")
        parts = {name: importlib.import_module(f"vllm.{name}") for name in names}
    except ImportError as error:
        raise _Refusal(f"{sys.executable} cannot import vllm ({error})") from error
    if tuple(int(part) for part in re.findall(r"\d+", vllm.__version__)[:2]) < OLDEST:
        oldest = ".".join(str(part) for part in OLDEST)
        raise _Refusal(f"{sys.executable} has vLLM {vllm.__version__}, older than {oldest}")
    return vllm, parts


if __name__ == "__main__":
    sys.exit(main())
