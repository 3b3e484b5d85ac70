"""The commands on a tenants file: `laura tenants ...`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laura.cli.console import Desk, opened
from laura.cli.options import JsonOption
from laura.results.errors import UsageError

if TYPE_CHECKING:
    from laura.serve.tenants import TenantSettings

tenants = typer.Typer(
    help="Who may use `laura serve`: keys, allowed adapters, limits.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
key = typer.Typer(
    help="A tenant's keys: two at most, so that clients can change over.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
tenants.add_typer(key, name="key")

RELOAD = "A server that runs takes this in when told to: POST /admin/tenants/reload."
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The tenant.")]
FileOption = Annotated[
    Path,
    typer.Option("--file", envvar="LAURA_TENANTS", metavar="FILE", help="The tenants file."),
]
AdaptersOption = Annotated[
    str | None,
    typer.Option(
        "--adapters",
        metavar="A,B",
        help="Adapters it may use: names, 'prefix*', or '*' for all; '' for none.",
    ),
]
BaseOption = Annotated[
    bool | None, typer.Option("--base/--no-base", help="Whether it may ask the base itself.")
]
RequestsOption = Annotated[
    str | None,
    typer.Option("--requests-per-minute", metavar="N", help="At most; 'none': no limit."),
]
TokensOption = Annotated[
    str | None,
    typer.Option(
        "--tokens-per-minute",
        metavar="N",
        help="At most, prompts and answers together; 'none': no limit.",
    ),
]
ConcurrentOption = Annotated[
    str | None,
    typer.Option("--concurrent", metavar="N", help="Requests at a time; 'none': no limit."),
]
PriorityOption = Annotated[
    float | None,
    typer.Option(
        "--priority", metavar="X", help="Share of the engine while several wait; 1 is usual."
    ),
]
ExpiresOption = Annotated[
    str | None,
    typer.Option(
        "--expires",
        metavar="DATE",
        help="Its keys end with this moment, UTC: 2027-01-31 or 2027-01-31T12:00Z; 'none': never.",
    ),
]


@tenants.callback()
def _root() -> None:
    pass


@key.callback()
def _keys() -> None:
    pass


@tenants.command()
def add(
    name: NameArgument,
    file: FileOption = Path("tenants.yaml"),
    adapters: AdaptersOption = None,
    base: BaseOption = None,
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    concurrent: ConcurrentOption = None,
    priority: PriorityOption = None,
    expires: ExpiresOption = None,
    json: JsonOption = False,
) -> None:
    """Add a tenant and show its key, this once.

    The file is made where there is none. Without options a tenant may ask the base, without
    limits, and no adapter.

    \b
    Example:
      laura tenants add acme --adapters 'support-*,maths' --requests-per-minute 60
    """
    with opened(json) as desk:
        wanted = _settings(
            adapters, base, requests_per_minute, tokens_per_minute, concurrent, priority, expires
        )
        from laura.serve.tenant_changes import add as add_tenant

        given = {field: value for field, value in wanted.items() if value is not None}
        _show_key(desk, name, file, add_tenant(file, name, given))


@tenants.command("set")
def set_(
    name: NameArgument,
    file: FileOption = Path("tenants.yaml"),
    adapters: AdaptersOption = None,
    base: BaseOption = None,
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    concurrent: ConcurrentOption = None,
    priority: PriorityOption = None,
    expires: ExpiresOption = None,
    json: JsonOption = False,
) -> None:
    """Change what a tenant may do; what is not named stays.

    \b
    Example:
      laura tenants set acme --concurrent 16 --tokens-per-minute none
    """
    with opened(json) as desk:
        wanted = _settings(
            adapters, base, requests_per_minute, tokens_per_minute, concurrent, priority, expires
        )
        if not wanted:
            raise UsageError("nothing to change was named; see `laura tenants set --help`")
        from laura.serve.tenant_changes import set_limits
        from laura.serve.tenants import Tenants

        set_limits(file, name, wanted)
        tenant = Tenants.read(file).get(name)
        assert tenant is not None
        text = f"{name} may now: {_rules_text(tenant)}\n{RELOAD}"
        desk.answer({"file": str(file), **_tenant_json(name, tenant)}, text)


@tenants.command("list")
def list_(file: FileOption = Path("tenants.yaml"), json: JsonOption = False) -> None:
    """List the tenants, what they may do, and the IDs of their keys.

    An ID is the beginning of a key's SHA-256. Tells every mistake in the file.

    \b
    Example:
      laura tenants list --file tenants.yaml
    """
    with opened(json) as desk:
        from laura.serve.tenants import key_id, parse_tenants, read_tenants_text

        whole = parse_tenants(read_tenants_text(file), str(file))
        admins = [key_id(one) for one in whole.admin.keys]
        lines = [f"{name}\n{_lines_text(one)}" for name, one in whole.tenants.items()]
        lines.append(f"admin\n  keys      {', '.join(admins) or 'none'}")
        value = {
            "file": str(file),
            "tenants": [_tenant_json(name, one) for name, one in whole.tenants.items()],
            "admin_keys": admins,
        }
        desk.answer(value, "\n".join(lines))


@tenants.command()
def remove(
    name: NameArgument, file: FileOption = Path("tenants.yaml"), json: JsonOption = False
) -> None:
    """Remove a tenant with all keys.

    \b
    Example:
      laura tenants remove acme
    """
    with opened(json) as desk:
        from laura.serve.tenant_changes import remove as remove_tenant

        remove_tenant(file, name)
        desk.answer({"removed": name, "file": str(file)}, f"{name} is removed.\n{RELOAD}")


@tenants.command()
def admin(
    file: FileOption = Path("tenants.yaml"),
    revoke: Annotated[
        str | None,
        typer.Option("--revoke", metavar="ID", help="Take this admin key away, make none."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make an admin key and show it, this once.

    It opens /admin and /metrics and is no tenant's: it asks no model. There may be two.

    \b
    Example:
      laura tenants admin --file tenants.yaml
    """
    with opened(json) as desk:
        from laura.serve.tenant_changes import make_admin, revoke_key

        if revoke is not None:
            _show_revoked(desk, None, file, revoke_key(file, None, revoke))
        else:
            _show_key(desk, None, file, make_admin(file))


@key.command("add")
def add_key(
    name: NameArgument, file: FileOption = Path("tenants.yaml"), json: JsonOption = False
) -> None:
    """Make a tenant's second key and show it, this once.

    The first one opens as before, until it is revoked.

    \b
    Example:
      laura tenants key add acme
    """
    with opened(json) as desk:
        from laura.serve.tenant_changes import add_key as add_tenant_key

        _show_key(desk, name, file, add_tenant_key(file, name))


@key.command()
def revoke(
    name: NameArgument,
    wanted: Annotated[
        str,
        typer.Argument(metavar="ID", help="Of `laura tenants list`: how its SHA-256 begins."),
    ],
    file: FileOption = Path("tenants.yaml"),
    json: JsonOption = False,
) -> None:
    """Take a key away.

    Whoever holds a key finds its ID by `printf %s KEY | sha256sum`.

    \b
    Example:
      laura tenants key revoke acme 0f343b0931126
    """
    with opened(json) as desk:
        from laura.serve.tenant_changes import revoke_key

        _show_revoked(desk, name, file, revoke_key(file, name, wanted))


def _settings(
    adapters: str | None,
    base: bool | None,
    requests: str | None,
    tokens: str | None,
    concurrent: str | None,
    priority: float | None,
    expires: str | None,
) -> dict[str, Any]:
    """The settings that were named; None where 'none' was."""
    wanted: dict[str, Any] = {}
    if adapters is not None:
        wanted["adapters"] = [one.strip() for one in adapters.split(",") if one.strip()]
    if base is not None:
        wanted["base"] = base
    limits = {
        "requests_per_minute": requests,
        "tokens_per_minute": tokens,
        "concurrent": concurrent,
    }
    for field, text in limits.items():
        if text is not None:
            wanted[field] = _limit("--" + field.replace("_", "-"), text)
    if priority is not None:
        wanted["priority"] = priority
    if expires is not None:
        wanted["expires"] = None if expires == "none" else expires
    return wanted


def _limit(option: str, text: str) -> int | None:
    try:
        return None if text == "none" else int(text)
    except ValueError:
        raise UsageError(f"{option} takes a whole number or none, came {text!r}") from None


def _show_key(desk: Desk, name: str | None, file: Path, made: str) -> None:
    from laura.serve.tenants import hash_of_key, key_id

    whose = "The admin's" if name is None else f"{name}'s"
    made_id = key_id(hash_of_key(made))
    text = (
        f"{whose} key, shown this once (only its SHA-256 is kept, in {file}):\n\n  {made}\n\n"
        f"Its ID is {made_id}. {RELOAD}"
    )
    desk.answer({"tenant": name, "key": made, "id": made_id, "file": str(file)}, text)


def _show_revoked(desk: Desk, name: str | None, file: Path, gone: str) -> None:
    whose = "the admin" if name is None else name
    value = {"tenant": name, "revoked": gone, "file": str(file)}
    desk.answer(value, f"The key {gone} of {whose} is revoked.\n{RELOAD}")


def _tenant_json(name: str, one: TenantSettings) -> dict[str, Any]:
    from laura.serve.tenants import key_id

    keys = [key_id(each) for each in one.keys]
    return {"name": name, **one.model_dump(mode="json"), "keys": keys, "expired": one.expired()}


def _lines_text(one: TenantSettings) -> str:
    from laura.serve.tenants import key_id

    keys = ", ".join(map(key_id, one.keys)) or "none: nobody comes in by this name"
    return f"  keys      {keys}\n  may       {_rules_text(one)}"


def _rules_text(one: TenantSettings) -> str:
    """What a tenant may do, on one line."""
    models = [*(["base"] if one.base else []), *one.adapters]
    words = [f"use {', '.join(models) or 'nothing'}"]
    for limit, what in (
        (one.requests_per_minute, "requests a minute"),
        (one.tokens_per_minute, "tokens a minute"),
        (one.concurrent, "at a time"),
    ):
        if limit is not None:
            words.append(f"{limit:,} {what}")
    words.append(f"priority {one.priority:g}")
    if one.expires is not None:
        past = "EXPIRED at" if one.expired() else "until"
        words.append(f"{past} {one.expires:%Y-%m-%d %H:%M} UTC")
    return "; ".join(words)
