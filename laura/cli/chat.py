"""The command that asks a base and adapters the same question: `laura chat`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from laura.cli.answers import adapter_names
from laura.cli.console import opened
from laura.cli.options import DeviceOption, JsonOption
from laura.results.errors import EXIT_INTERRUPTED, EXIT_USER, UsageError

if TYPE_CHECKING:
    from laura.results.progress import Progress
    from laura.serve.chatting import Chat, Panel, Turn

REPEAT_SECONDS = 0.2
HINT = "Ctrl-C stops an answer, /clear begins anew, Ctrl-D leaves."


def chat(
    base: Annotated[
        str | None,
        typer.Argument(metavar="[BASE]", help="Registry name, folder, GGUF file or Hub id."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR", help="LoRA adapter in PEFT's format, for BASE. Repeatable."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Ask a running server instead; a key is read from LAURA_API_KEY.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Model of the server. Repeatable.",
            show_default="the base and the first three adapters",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Ask this once and leave.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, metavar="X", help="0 takes the most likely token.")
    ] = 0.0,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most new tokens of an answer.")
    ] = 256,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the draws.")] = 0,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Ask base and adapters the same question, and see what differs.

    Answers stand side by side where the terminal is wide enough. Of an adapter's,
    [-words-] are the base's alone and {+words+} the adapter's alone. Each model is
    reminded of its own earlier answers; one without a chat template of none.

    \b
    Example:
      laura chat smollm2-135m-instruct-q4 --adapter studies/demo-recommended
      laura chat --url http://127.0.0.1:8000 --prompt "What is 17 times 3?" --json
    """
    with opened(json) as desk:
        _check(base, url, adapter, model, prompt, json)
        panel = _panel(base, adapter or [], url, model or [], device, desk.progress)
        from laura.serve.chatting import Chat, Sampling

        talk = Chat(panel, Sampling(temperature, max_tokens, seed))
        # What the output's encoding lacks is escaped, and ends nothing.
        getattr(sys.stdout, "reconfigure", lambda errors: None)(errors="backslashreplace")
        if prompt is None:
            _converse(talk)
            return
        if json:
            turn = talk.ask(prompt, lambda turn: None)
            desk.answer(talk.to_json(turn))
        else:
            turn = _ask(talk, prompt)
    if any(reply.finish == "stopped" for reply in turn.replies.values()):
        raise typer.Exit(EXIT_INTERRUPTED)
    if any(reply.error for reply in turn.replies.values()):
        raise typer.Exit(EXIT_USER)


def _check(
    base: str | None,
    url: str | None,
    adapter: list[str] | None,
    model: list[str] | None,
    prompt: str | None,
    json: bool,
) -> None:
    if (base is None) == (url is None):
        raise UsageError("give either BASE, which is loaded here, or --url of a running server")
    if url is not None and adapter:
        raise UsageError("--adapter is for BASE; of a server's models choose by --model")
    if base is not None and model:
        raise UsageError("--model is for --url; beside BASE name adapters by --adapter")
    if json and prompt is None:
        raise UsageError("--json needs --prompt: one question, one object")
    if prompt is not None and not prompt.strip():
        raise UsageError("--prompt is empty; there is nothing to ask")


def _panel(
    base: str | None,
    adapters: list[str],
    url: str | None,
    models: list[str],
    device: str | None,
    progress: Progress,
) -> Panel:
    if url is not None:
        from laura.serve.chat_client import KEY_VARIABLE, ServerPanel

        return ServerPanel(url, os.environ.get(KEY_VARIABLE), models)
    assert base is not None
    named = adapter_names(adapters)
    from laura.serve.chat_in_process import LoadedPanel

    return LoadedPanel(base, named, device, progress)


def _converse(talk: Chat) -> None:
    """Ask for questions until the input ends."""
    from rich.console import Console

    from laura.cli.chat_screen import introduction

    with suppress(ImportError):
        import readline  # noqa: F401  (arrow keys: earlier questions)
    Console(highlight=False).print(introduction(talk.panel.members))
    typer.echo(HINT)
    with _polite_signal_heeded():
        _ask_and_answer(talk)


def _ask_and_answer(talk: Chat) -> None:
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo(f"\n{HINT}")
            continue
        if question == "/clear":
            talk.turns.clear()
            typer.echo("Begun anew.")
        elif question:
            try:
                _ask(talk, question)
            except UsageError as error:  # such as a conversation that has become too long
                typer.echo(f"error: {error}", err=True)


@contextmanager
def _polite_signal_heeded() -> Iterator[None]:
    """Within the block SIGTERM leaves, also where it comes at the worst moment.

    Ctrl-C stops an answer only, so this signal must not look like it. And between writing
    its prompt and waiting for a key, readline does not look whether a signal came: it would
    wait on until another one comes. So a thread, which is told of a signal at once, sends it
    again until the block has ended.
    """
    wakes, woken = os.pipe()
    os.set_blocking(woken, False)
    asking = threading.get_ident()
    before = signal.signal(signal.SIGTERM, _leave)
    told = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    over = threading.Event()

    def repeat() -> None:
        came = b""
        while signal.SIGTERM not in came:
            came = os.read(wakes, 64)
            if not came:
                return
        while not over.wait(REPEAT_SECONDS):
            signal.pthread_kill(asking, signal.SIGTERM)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(told)
        os.close(woken)
        thread.join()
        os.close(wakes)
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: object) -> None:
    # Once is enough: what is being put in order must not be broken off.
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(EXIT_INTERRUPTED)


def _ask(talk: Chat, question: str) -> Turn:
    """Show answers while they grow where that can be, then whole."""
    from contextlib import ExitStack

    from rich.console import Console

    from laura.cli.chat_screen import drawn, growing

    console = Console(highlight=False)
    with ExitStack() as stack:
        turn = talk.ask(question, lambda turn: stack.enter_context(growing(console, turn)))
    console.print(drawn(talk, turn, console.width))
    return turn
