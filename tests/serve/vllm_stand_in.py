"""A stand-in for vLLM's server, without a model: tests copy it to a folder as a module of `vllm`.

A token follows from the tokens before it and from a number that each adapter's weights
give; the base's number is 0. So a test knows every answer, and sees who gave it.

STAND_IN names a folder. `faults.json` in it is read again and again and says how to
misbehave; `log.jsonl` tells what happened. Faults:
    mix         a base's token beside adapters is that of the adapter in the last place
    muddle      an adapter's token beside other adapters is the last one's
    taint       once an adapter was loaded, the base is that adapter
    same        every adapter is the first one
    refuse      adapters are not loaded: status 500
    exit        ends at its start, with an error
    slow        seconds before it listens
    die_after   tokens until it kills itself
    status      answers every completion so
    mute        completions say nothing
    freeze      nothing is answered any more
    reads       most tokens of a text, where as many were wanted as there is memory for
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse

END, FIRST, COUNT = 2, 3, 370
STEP_SECONDS = 0.004
STEP_OF_CANCELLED_SECONDS = 0.1
# Of the event loop, from the end of a connection to the end of its answer.
TURNS_UNTIL_NOTICED = 20


def shift_of(b_sum: float) -> int:
    """The number of an adapter, from the sum of all its B matrices."""
    return 1 + int(abs(b_sum) * 1000) % 9973


def next_token(tokens: list[int], shift: int) -> int:
    """What follows: often the end token, after every run of about twenty."""
    value = sum((i + 1) * token for i, token in enumerate(tokens[-4:])) * 7 + shift * 13
    return END if value % 23 == 5 else FIRST + (value + len(tokens)) % COUNT


def nats(tokens: list[int], token: int, shift: int) -> float:
    """Log-probability of a token after others."""
    value = (sum(tokens[-3:]) + 31 * token + 17 * shift) % 1009
    return -0.01 - value / 100


class Log:
    """What happened, a line each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "log.jsonl"

    def write(self, **what: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(what) + "\n")

    def faults(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / "faults.json").read_text()))
        except FileNotFoundError:
            return {}


class Server:
    """Adapters and who is in the batch."""

    def __init__(self, log: Log, places: int) -> None:
        self.log = log
        # Like vLLM's: an adapter that is unloaded stays in its place until that is needed.
        self.places: list[int | None] = [None] * places
        self.filled = 0
        self.adapters: dict[str, int] = {}
        self.batch: list[str] = []
        # Those cancelled whose step has not ended.
        self.leaving: list[asyncio.Future[None]] = []
        self.tokens = 0
        self.last = 0

    def load(self, name: str, folder: str) -> int:
        from safetensors.numpy import load_file

        if self.log.faults().get("refuse"):
            return 500
        if name in self.adapters:
            return 400
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
        total = sum(float(v.sum()) for key, v in sorted(tensors.items()) if "lora_B" in key)
        self.adapters[name] = self.last = shift_of(total)
        self.places[self.filled % len(self.places)] = self.last
        self.filled += 1
        self.log.write(load=name, folder=folder, loaded=len(self.adapters))
        return 200

    def shift(self, model: str) -> int:
        """Whose answer it is, faults included."""
        faults, others = self.log.faults(), [m for m in self.batch if m in self.adapters]
        if model not in self.adapters:
            if faults.get("taint"):
                return self.last
            return (self.places[-1] or 0) if faults.get("mix") and others else 0
        if faults.get("same"):
            return next(iter(self.adapters.values()))
        if faults.get("muddle") and others:
            return self.adapters[others[-1]]
        return self.adapters[model]

    async def step(self) -> None:
        faults = self.log.faults()
        if faults.get("freeze"):
            time.sleep(600)
        while self.log.faults().get("mute"):
            await asyncio.sleep(0.05)
        self.tokens += 1
        if faults.get("die_after") is not None and self.tokens > faults["die_after"]:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(STEP_SECONDS)

    async def tokens_of(self, body: dict[str, Any]) -> AsyncIterator[tuple[list[int], int]]:
        """Each new token behind those before it, and whose it is."""
        model, tokens = body["model"], list(body["prompt"])
        self.batch.append(model)
        self.log.write(begin=model, batch=sorted(set(self.batch)))
        ended = False
        try:
            for _ in range(body["max_tokens"]):
                shift = self.shift(model)
                await self.left()
                await self.step()
                await self.left()
                tokens = [*tokens, next_token(tokens, shift)]
                yield tokens, shift
                if tokens[-1] in body.get("stop_token_ids", ()):
                    break
            ended = True
        finally:
            if ended:
                self.batch.remove(model)
            else:
                self.cancel(model)
            self.log.write(end=model, new=len(tokens) - len(body["prompt"]))

    async def left(self) -> None:
        """One step is for all in the batch: nobody is answered before it ends.

        Also who began before the other was cancelled, and ends after; a machine that stalls
        may see the end of the step before it sees the client go.
        """
        for _ in range(TURNS_UNTIL_NOTICED):
            await asyncio.sleep(0)
        if self.leaving:
            await asyncio.wait(self.leaving)

    def cancel(self, model: str) -> None:
        """Who is cancelled is in the batch until the step ends."""
        loop = asyncio.get_running_loop()
        left = loop.create_future()

        def leave() -> None:
            self.batch.remove(model)
            self.leaving.remove(left)
            left.set_result(None)

        self.leaving.append(left)
        loop.call_later(STEP_OF_CANCELLED_SECONDS, leave)


def top(tokens: list[int], token: int, shift: int, count: int) -> dict[int, float]:
    """The token and the likeliest others of a few."""
    others = sorted(range(FIRST, FIRST + 50), key=lambda other: -nats(tokens, other, shift))
    return {other: nats(tokens, other, shift) for other in [token, *others[:count]]}


def scores(body: dict[str, Any], tokens: list[int], shift: int) -> dict[str, Any] | None:
    """Of the last token, as the API tells them."""
    if body.get("logprobs") is None:
        return None
    found = top(tokens[:-1], tokens[-1], shift, body["logprobs"])
    return {
        "tokens": [f"token_id:{tokens[-1]}"],
        "token_logprobs": [found[tokens[-1]]],
        "top_logprobs": [{f"token_id:{token}": value for token, value in found.items()}],
    }


def usage(body: dict[str, Any], new: int) -> dict[str, Any]:
    """Three tokens are said to come from a cache."""
    count = len(body["prompt"])
    details = {"cached_tokens": min(3, count)}
    return {"prompt_tokens": count, "completion_tokens": new, "prompt_tokens_details": details}


def make_app(server: Server, key: str, length: int) -> Any:
    # No middleware: one would hold a cancelled answer between two tokens, neither run nor ended.
    async def check(request: Request) -> None:
        right = request.headers.get("authorization") == f"Bearer {key}"
        if request.url.path.startswith("/v1") and not right:
            raise HTTPException(401, "Unauthorized")
        if server.log.faults().get("freeze"):
            time.sleep(600)

    app = FastAPI(dependencies=[Depends(check)])

    @app.get("/health")
    async def health() -> Any:
        return JSONResponse({})

    @app.get("/v1/models")
    async def models() -> Any:
        names = ["base", *server.adapters]
        cards = [{"id": name, "max_model_len": length} for name in names[:1]]
        return JSONResponse({"data": cards + [{"id": name} for name in names[1:]]})

    @app.post("/v1/load_lora_adapter")
    async def load(request: Request) -> Any:
        body = await request.json()
        status = server.load(body["lora_name"], body["lora_path"])
        return JSONResponse({"error": {"message": "no"}} if status != 200 else {}, status)

    @app.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> Any:
        name = (await request.json())["lora_name"]
        found = server.adapters.pop(name, None)
        server.log.write(unload=name, loaded=len(server.adapters))
        return JSONResponse({}, 404 if found is None else 200)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        body = await request.json()
        status = server.log.faults().get("status")
        if body["model"] != "base" and body["model"] not in server.adapters:
            status = 404
        if status:
            return JSONResponse({"error": {"message": "as told"}}, status)
        if body.get("stream"):
            return StreamingResponse(stream(server, body), media_type="text/event-stream")
        return JSONResponse(await whole(server, body))

    return app


async def stream(server: Server, body: dict[str, Any]) -> AsyncIterator[str]:
    new = 0
    async for tokens, shift in server.tokens_of(body):
        new += 1
        stopped = tokens[-1] in body.get("stop_token_ids", ())
        finish = "stop" if stopped else "length" if new == body["max_tokens"] else None
        choice = {"index": 0, "text": "", "finish_reason": finish, "token_ids": [tokens[-1]]}
        choice["logprobs"] = scores(body, tokens, shift)
        yield f"data: {json.dumps({'choices': [choice]})}\n\n"
    yield f"data: {json.dumps({'choices': [], 'usage': usage(body, new)})}\n\n"
    yield "data: [DONE]\n\n"


async def whole(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    """With the prompt's scores; one new token is made."""
    assert body["max_tokens"] == 1
    prompt = body["prompt"]
    async for tokens, shift in server.tokens_of(body):
        choice: dict[str, Any] = {"text": "", "finish_reason": "length", "token_ids": tokens[-1:]}
        choice["logprobs"] = scores(body, tokens, shift)
        choice["prompt_logprobs"] = [
            {
                str(token): {"logprob": value, "rank": 1}
                for token, value in top(prompt[:i], own, shift, body["prompt_logprobs"]).items()
            }
            if i
            else None
            for i, own in enumerate(prompt)
        ]
    return {"choices": [choice], "usage": usage(body, 1)}


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser()
    parser.add_argument("--uds", required=True)
    parser.add_argument("--max-loras", type=int, default=1)
    parser.add_argument("--max-model-len", required=True)
    arguments, _ = parser.parse_known_args()
    log = Log(Path(os.environ["STAND_IN"]))
    faults = log.faults()
    key = os.environ["VLLM_API_KEY"]
    log.write(
        start=sys.argv[1:],
        pid=os.getpid(),
        key_shown=key in sys.argv,
        sockets=os.environ["VLLM_RPC_BASE_PATH"],
        temporary=tempfile.gettempdir(),
        compiled=os.environ["TORCHINDUCTOR_CACHE_DIR"],
    )
    if faults.get("exit"):
        print("ERROR 11-25 [core.py:1] ValueError: no memory left for it", file=sys.stderr)
        sys.exit(3)
    time.sleep(faults.get("slow", 0))
    wanted = arguments.max_model_len
    length = faults.get("reads", 512) if wanted == "auto" else int(wanted)
    app = make_app(Server(log, arguments.max_loras), key, length)
    uvicorn.run(app, uds=arguments.uds, log_level="warning")


if __name__ == "__main__":
    main()
