"""The command that asks a base and adapters the same question: `laura chat`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from laura.cli.console import Console
from laura.cli.measurement import adapter_names
from laura.cli.options import ADAPTER, BASE, DEVICE, argument, option
from laura.results.errors import EXIT_INTERRUPTED, EXIT_USER, UsageError

if TYPE_CHECKING:
    from laura.serve.chatting import Chat, Turn

REPEAT_SECONDS = 0.2
HINT = "Ctrl-C stops an answer, /help tells the commands, Ctrl-D leaves."
HELP = """\
/help    tell these commands
/clear   begin anew: no model is reminded of what was said
/quit    leave, as Ctrl-D does
Ctrl-C   stop an answer; what is there of it stays
Whatever does not begin with / is asked of every model."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Who is asked what, and how."""

    base: str = argument(**BASE)
    adapter: list[str] | None = option(**ADAPTER)
    prompt: str | None = option(metavar="TEXT")
    """Ask this once and leave."""
    temperature: float = option(default=0.0, min=0, max=2, metavar="X")
    """0 takes the most likely token."""
    max_tokens: int = option(default=256, min=1, metavar="N")
    """Most new tokens of an answer."""
    seed: int = option(default=0, min=0, metavar="N")
    """Seed of the draws."""
    device: str | None = option(**DEVICE)


def chat(console: Console, options: ChatOptions) -> int | None:
    """Ask base and adapters the same question, and see what differs.

    Answers stand side by side where the terminal is wide enough. Of an adapter's,
    [-words-] are the base's alone and {+words+} the adapter's alone. Each model is
    reminded of its own earlier answers; one without a chat template of none.

    \b
    Example:
      laura chat smollm2-135m-instruct-q4 --adapter studies/demo-recommended
      laura chat smollm2-135m-instruct-q4 --prompt "What is 17 times 3?" --json
    """
    prompt = options.prompt
    if console.as_json and prompt is None:
        raise UsageError("--json needs --prompt: one question, one object")
    if prompt is not None and not prompt.strip():
        raise UsageError("--prompt is empty; there is nothing to ask")
    adapters = adapter_names(options.adapter or ())
    from laura.serve.chat_in_process import LoadedPanel
    from laura.serve.chatting import Chat, Sampling

    panel = LoadedPanel(options.base, adapters, options.device, console.progress)
    talk = Chat(panel, Sampling(options.temperature, options.max_tokens, options.seed))
    # What the output's encoding lacks is escaped, and ends nothing.
    getattr(sys.stdout, "reconfigure", lambda errors: None)(errors="backslashreplace")
    if prompt is None:
        with _sigterm_leaves():
            _converse(talk)
        return None
    if console.as_json:
        turn = talk.ask(prompt, lambda turn: None)
        console.answer(talk.to_json(turn))
    else:
        turn = _ask(talk, prompt)
    if any(reply.finish == "stopped" for reply in turn.replies.values()):
        return EXIT_INTERRUPTED
    return EXIT_USER if any(reply.error for reply in turn.replies.values()) else None


def _converse(talk: Chat) -> None:
    """Ask for questions until the input ends."""
    from rich.console import Console as Terminal

    from laura.cli.chat_screen import introduction
    from laura.report.visible import visible_line

    with suppress(ImportError):
        import readline  # noqa: F401  (arrow keys: earlier questions)
    Terminal(highlight=False).print(introduction(talk.panel.members))
    typer.echo(HINT)
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo(f"\n{HINT}")
            continue
        match question:
            case "/clear":
                talk.turns.clear()
                typer.echo("Begun anew.")
            case "/help":
                typer.echo(HELP)
            case "/quit":
                return
            case _ if question.startswith("/"):
                typer.echo(f"There is no command {visible_line(question.split()[0])}.\n{HELP}")
            case _ if question:
                try:
                    _ask(talk, question)
                except UsageError as error:  # such as a conversation that has become too long
                    typer.echo(f"error: {error}", err=True)


def _ask(talk: Chat, question: str) -> Turn:
    """Show answers while they grow where that can be, then whole."""
    from contextlib import ExitStack

    from rich.console import Console as Terminal

    from laura.cli.chat_screen import drawn, growing

    terminal = Terminal(highlight=False)
    with ExitStack() as stack:
        turn = talk.ask(question, lambda turn: stack.enter_context(growing(terminal, turn)))
    terminal.print(drawn(talk, turn, terminal.width))
    return turn


@contextmanager
def _sigterm_leaves() -> Iterator[None]:
    """Within the block SIGTERM leaves, also where it comes at the worst moment.

    Ctrl-C stops an answer only, so this signal must not look like it. And between writing
    its prompt and waiting for a key, readline does not look whether a signal came: it would
    wait on until another one comes. So a thread, which is told of a signal at once, sends it
    again until the block has ended.
    """
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    asking, over = threading.get_ident(), threading.Event()

    def repeat() -> None:
        while (came := os.read(woken, 1)) and came[0] != signal.SIGTERM:
            pass
        while not over.wait(REPEAT_SECONDS):
            signal.pthread_kill(asking, signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, _leave)
    told = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(told)
        os.close(wakes)
        thread.join()
        os.close(woken)
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: object) -> None:
    # Once is enough: what is being put in order must not be broken off.
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(EXIT_INTERRUPTED)
