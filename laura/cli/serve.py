"""The command that serves a base with its adapters: `laura serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from laura.cli.console import Desk, opened
from laura.cli.options import DeviceOption, JsonOption

if TYPE_CHECKING:
    from laura.serve.library import Entry, Library, Policy
    from laura.serve.settings import EngineSettings, ServeSettings

SHOWN_ADAPTERS = 20

BaseArgument = Annotated[
    str, typer.Argument(metavar="BASE", help="Registry name, folder, GGUF file or Hub id.")
]
AdaptersOption = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        metavar="DIR",
        help="Folder of LoRA adapters in PEFT's format, each a folder in it.",
    ),
]
TenantsOption = Annotated[
    Path | None,
    typer.Option(
        envvar="LAURA_TENANTS",
        metavar="FILE",
        help="Who may ask what, made by `laura tenants add`. Without it only this machine is "
        "served, and nobody needs a key.",
    ),
]
EngineOption = Annotated[
    Literal["inprocess", "vllm"],
    typer.Option(help="Laura's own engine, or a vLLM server that Laura starts."),
]
HostOption = Annotated[str, typer.Option(metavar="NAME", help="Address to listen at.")]
PortOption = Annotated[
    int, typer.Option(min=0, max=65535, metavar="N", help="Port to listen at; 0 takes a free one.")
]
SlotsOption = Annotated[
    int, typer.Option(min=1, max=4096, metavar="N", help="Most adapters in memory at once.")
]
RankOption = Annotated[
    int, typer.Option(min=1, max=1024, metavar="N", help="Largest rank of an adapter.")
]
ForgettingOption = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Most that an adapter may have forgotten, in its laura.json's unit.",
        show_default="no bound",
    ),
]
ForgetfulOption = Annotated[
    Literal["refuse", "warn"], typer.Option(help="What to do with an adapter that forgot more.")
]
UnrecordedOption = Annotated[
    Literal["allow", "warn", "refuse"],
    typer.Option(help="What to do with an adapter without a laura.json."),
]
QueueOption = Annotated[int, typer.Option(min=1, metavar="N", help="Most answers that wait.")]
NewTokensOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Longest answer.", show_default="what the base reads"),
]
PromptTokensOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Longest prompt.", show_default="what the base reads"),
]
TimeoutOption = Annotated[
    float, typer.Option(min=1, metavar="SECONDS", help="Longest time for an answer.")
]
GraceOption = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="Time that a stop leaves running answers.")
]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16"], typer.Option(help="Of weights and products.")
]
DraftsOption = Annotated[
    bool,
    typer.Option(
        "--drafts/--no-drafts",
        help="Guess what repeats in an answer and check it in the same step: the same text, "
        "sooner where few are answered at once.",
    ),
]
ArgumentOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="An argument of vLLM's own server, such as tensor-parallel-size=2; may be given "
        "several times.",
    ),
]
AuditOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Where admin actions are written, a line of JSON each."),
]


def serve(
    base: BaseArgument,
    adapters: AdaptersOption = None,
    tenants: TenantsOption = None,
    engine: EngineOption = "inprocess",
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    slots: SlotsOption = 16,
    max_rank: RankOption = 64,
    max_forgetting: ForgettingOption = None,
    forgetful: ForgetfulOption = "refuse",
    unrecorded: UnrecordedOption = "warn",
    queue: QueueOption = 512,
    max_new_tokens: NewTokensOption = None,
    max_prompt_tokens: PromptTokensOption = None,
    timeout: TimeoutOption = 600,
    grace: GraceOption = 30,
    precision: PrecisionOption = "auto",
    device: DeviceOption = None,
    drafts: DraftsOption = True,
    vllm_argument: ArgumentOption = None,
    audit: AuditOption = None,
    json: JsonOption = False,
) -> None:
    """Serve a base and many adapters by OpenAI's API.

    Clients name the base or an adapter as their model. A page to chat is at /, numbers for
    Prometheus at /metrics. A line of JSON for each request goes to standard error. Ctrl-C or
    SIGTERM stops it: answers that are being written are finished first.

    \b
    Example:
      laura serve smollm2-135m-instruct-q4 --adapters adapters
    """
    with opened(json) as desk:
        from laura.serve.settings import (
            EngineSettings,
            ServeSettings,
            check_address,
            model_name,
        )
        from laura.serve.vllm_arguments import read_arguments

        check_address(host, tenants is not None)
        from laura.serve.library import Policy  # with torch: not before what needs none of it

        policy = Policy(max_forgetting=max_forgetting, unrecorded=unrecorded, action=forgetful)
        door = ServeSettings(
            base=model_name(base),
            host=host,
            port=port,
            request_seconds=timeout,
            grace_seconds=grace,
            prompt_tokens=max_prompt_tokens,
            new_tokens=max_new_tokens,
        )
        room = EngineSettings(
            base=base,
            kind=engine,
            slots=0 if adapters is None else slots,
            max_rank=max_rank,
            queue=queue,
            precision=precision,
            device=device,
            drafts=drafts,
            arguments=read_arguments(vllm_argument or ()),
        )
        _open_and_run(desk, door, room, policy, (adapters, tenants, audit))


def _open_and_run(
    desk: Desk,
    door: ServeSettings,
    room: EngineSettings,
    policy: Policy,
    places: tuple[Path | None, Path | None, Path | None],
) -> None:
    from laura.serve.admin import Audit
    from laura.serve.app import create_app
    from laura.serve.server import (
        listening_socket,
        open_base,
        open_engine,
        open_library,
        run,
        url_of,
    )
    from laura.serve.tenants import Tenants

    adapters, tenants_file, audit_file = places
    audit = Audit(audit_file)
    tenants = None if tenants_file is None else Tenants.read(tenants_file)
    # First the socket: whoever has the port taken should not wait for a model.
    with listening_socket(door) as place:
        # What was loaded and pinned before is gone; a file that cannot be written is told now.
        audit.write("server.start", "server", door.base, "done")
        folder = open_base(room.base, desk.progress)
        engine = open_engine(folder, room)
        library = open_library(folder, adapters, room, policy, engine.fingerprint)
        app = create_app(
            door, engine, library, tenants=tenants, tenants_file=tenants_file, audit=audit
        )
        names = None if tenants is None else list(tenants.names)
        url = url_of(place)

        def tell() -> None:
            entries = [library.entry(name) for name in library.names()]
            refused = {one.name: one.refused for one in entries if one.refused is not None}
            served = [one.name for one in entries if one.refused is None]
            value = {"url": url, "base": door.base, "adapters": served, "refused": refused}
            text = adapters_text(entries, library) + welcome_text(door.base, url, names)
            desk.answer(value, text)

        run(app, place, engine, tell)


def adapters_text(entries: list[Entry], library: Library) -> str:
    """Which adapters there are, and what is wrong with them, a line each."""
    from laura.report.visible import visible_line

    good = [entry for entry in entries if entry.refused is None]
    lines = [f"adapters: {len(good)} served, {len(entries) - len(good)} refused"]
    kinds: tuple[tuple[str, list[Any]], ...] = (
        ("", [entry.name for entry in good]),
        ("refused: ", [entry.refused for entry in entries if entry.refused is not None]),
        ("warning: ", [f"{entry.name}: {line}" for entry in good for line in entry.warnings]),
        ("not offered: ", list(library.notes)),
    )
    for title, found in kinds:
        lines += [f"  {title}{visible_line(text)}" for text in found[:SHOWN_ADAPTERS]]
        if len(found) > SHOWN_ADAPTERS:
            lines.append(f"  {title}and {len(found) - SHOWN_ADAPTERS} more")
    return "\n".join(lines) + "\n"


def welcome_text(base: str, url: str, tenants: list[str] | None) -> str:
    """Where the server listens, whom it serves, and how to ask."""
    whom = f"{len(tenants or ())} tenants, by their keys"
    key = ' -H "authorization: Bearer KEY"'
    if tenants is None:
        key = ""
        whom = "this machine only, without keys (`laura tenants add` makes keys for others)"
    return (
        f"serving {base} at {url} to {whom}\n"
        f"page:   {url}/\n"
        f"openai: base_url {url}/v1, model {base} or an adapter's name\n"
        f'curl:   curl {url}/v1/completions{key} -H "content-type: application/json" '
        f"""-d '{{"model": "{base}", "prompt": "Once", "max_tokens": 32}}'\n"""
        "stop:   Ctrl-C"
    )
