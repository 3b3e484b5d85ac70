"""The commands on the database of a server: `laura tenants ...`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from laura.cli.console import Console, command
from laura.cli.options import argument, option
from laura.results.errors import UsageError

if TYPE_CHECKING:
    from laura.serve.auth import TenantSettings
    from laura.serve.database import Database

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

TAKEN_IN = "Servers that run take this in within a second."


@dataclass(frozen=True, kw_only=True)
class DatabaseOptions:
    """Which database."""

    database: str = option(default="sqlite:///laura.db", envvar="LAURA_DATABASE", metavar="URL")
    """Where tenants are: sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME."""

    def opened(self, new: bool = False) -> Database:
        """The database; `new` makes a file where there is none."""
        from laura.serve.database import Database

        return Database(self.database, new=new)


@dataclass(frozen=True, kw_only=True)
class TenantOptions(DatabaseOptions):
    """Who is meant."""

    name: str = argument(metavar="NAME")
    """The tenant."""


@dataclass(frozen=True, kw_only=True)
class RuleOptions(TenantOptions):
    """What a tenant may do; None where nothing was said."""

    adapters: str | None = option(metavar="A,B")
    """Adapters it may use: names, 'prefix*', or '*' for all; '' for none."""
    base: bool | None = option("--base/--no-base")
    """Whether it may ask the base itself."""
    requests_per_minute: str | None = option(metavar="N")
    """At most; 'none': no limit."""
    tokens_per_minute: str | None = option(metavar="N")
    """At most, prompts and answers together; 'none': no limit."""
    tokens_per_day: str | None = option(metavar="N")
    """Likewise in a day; 'none': no limit."""
    concurrent: str | None = option(metavar="N")
    """Requests at a time; 'none': no limit."""
    priority: float | None = option(metavar="X")
    """Share of the engine while several wait; 1 is usual."""
    expires: str | None = option(metavar="DATE")
    """Its keys end with this moment, UTC: 2027-01-31 or 2027-01-31T12:00Z; 'none': never."""

    def wanted(self) -> dict[str, Any]:
        """The settings that were named; None where 'none' was.

        Raises:
            UsageError: a limit is no whole number.
        """
        told = {name: value for name, value in vars(self).items() if value is not None}
        wanted = {name: value for name, value in told.items() if name not in ("name", "database")}
        if "adapters" in wanted:
            names = (one.strip() for one in str(wanted["adapters"]).split(","))
            wanted["adapters"] = [name for name in names if name]
        for name in ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrent"):
            if name in wanted:
                wanted[name] = _limit("--" + name.replace("_", "-"), str(wanted[name]))
        if wanted.get("expires") == "none":
            wanted["expires"] = None
        return wanted


@dataclass(frozen=True, kw_only=True)
class AdminOptions(DatabaseOptions):
    """What becomes of admin keys."""

    revoke: str | None = option(metavar="ID")
    """Take this admin key away, make none."""


@dataclass(frozen=True, kw_only=True)
class RevokeOptions(TenantOptions):
    """Which key is taken away."""

    wanted: str = argument(metavar="ID")
    """Of `laura tenants list`: how its SHA-256 begins."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions(DatabaseOptions):
    """What is taken over."""

    file: Path = argument(exists=True, dir_okay=False, metavar="FILE")
    """Tenants and keys in YAML; see docs/serving.md."""


@dataclass(frozen=True, kw_only=True)
class AuditOptions(DatabaseOptions):
    """How much is shown."""

    last: int = option(default=100, min=1, metavar="N")
    """Most rows."""


@tenants.callback()
@key.callback()
def _root() -> None:
    pass


@command(tenants)
def add(console: Console, options: RuleOptions) -> None:
    """Add a tenant and show its key, this once.

    A file of SQLite is made where there is none. Without options a tenant may ask the base,
    without limits, and no adapter.

    \b
    Example:
      laura tenants add acme --adapters 'support-*,maths' --requests-per-minute 60
    """
    wanted = options.wanted()
    from laura.serve.tenant_changes import add as add_tenant

    given = {field: value for field, value in wanted.items() if value is not None}
    database = options.opened(new=True)
    _show_key(console, options.name, database, add_tenant(database, options.name, given))


@command(tenants, "set")
def set_(console: Console, options: RuleOptions) -> None:
    """Change what a tenant may do; what is not named stays.

    \b
    Example:
      laura tenants set acme --concurrent 16 --tokens-per-minute none
    """
    wanted = options.wanted()
    if not wanted:
        raise UsageError("nothing to change was named; see `laura tenants set --help`")
    from laura.serve.tenant_changes import set_limits

    database, name = options.opened(), options.name
    tenant = set_limits(database, name, wanted)
    text = f"{name} may now: {_rules_text(tenant)}\n{TAKEN_IN}"
    console.answer({"database": database.name, **_tenant_json(name, tenant)}, text)


@command(tenants, "list")
def list_(console: Console, options: DatabaseOptions) -> None:
    """List the tenants, what they may do, and the IDs of their keys.

    An ID is the beginning of a key's SHA-256.

    \b
    Example:
      laura tenants list --database sqlite:///laura.db
    """
    from laura.serve.auth import key_id
    from laura.serve.tenant_changes import stored_tenants

    database = options.opened()
    whole, _ = stored_tenants(database)
    found = [_tenant_json(name, one) for name, one in whole.tenants.items()]
    admins = [key_id(one) for one in whole.admin.keys]
    lines = [
        f"{one['name']}\n  keys      "
        f"{', '.join(one['keys']) or 'none: nobody comes in by this name'}\n"
        f"  may       {_rules_text(whole.tenants[one['name']])}"
        for one in found
    ]
    lines.append(f"admin\n  keys      {', '.join(admins) or 'none'}")
    value = {"database": database.name, "tenants": found, "admin_keys": admins}
    console.answer(value, "\n".join(lines))


@command(tenants)
def remove(console: Console, options: TenantOptions) -> None:
    """Remove a tenant with all keys.

    \b
    Example:
      laura tenants remove acme
    """
    from laura.serve.tenant_changes import remove as remove_tenant

    database, name = options.opened(), options.name
    remove_tenant(database, name)
    value = {"removed": name, "database": database.name}
    console.answer(value, f"{name} is removed.\n{TAKEN_IN}")


@command(tenants, "import")
def import_(console: Console, options: ImportOptions) -> None:
    """Take over a file of tenants in the place of all that were there.

    For tenants that are written by hand and kept with other configuration. What a tenant of the
    same name has used stays used. Keys are replaced too. Tells every mistake in the file.

    \b
    Example:
      laura tenants import tenants.yaml --database sqlite:///laura.db
    """
    from laura.serve.auth import read_tenants
    from laura.serve.tenant_changes import replace

    file = read_tenants(options.file)
    database = options.opened(new=True)
    replace(database, file)
    value = {"database": database.name, "tenants": list(file.tenants)}
    console.answer(value, f"{len(file.tenants)} tenants are in {database.name}.\n{TAKEN_IN}")


@command(tenants)
def audit(console: Console, options: AuditOptions) -> None:
    """Show what was done with admin keys, the newest at the end.

    A line of JSON each.

    \b
    Example:
      laura tenants audit --last 1000 --database sqlite:///laura.db
    """
    from laura.serve.audit import Audit

    rows = Audit(options.opened()).last(options.last)
    console.answer({"audit": rows}, "\n".join(map(json.dumps, rows)))


@command(tenants)
def admin(console: Console, options: AdminOptions) -> None:
    """Make an admin key and show it, this once.

    It opens /admin and /metrics and is no tenant's: it asks no model. There may be two.

    \b
    Example:
      laura tenants admin --database sqlite:///laura.db
    """
    from laura.serve.tenant_changes import make_admin, revoke_key

    database = options.opened(new=options.revoke is None)
    if options.revoke is not None:
        _show_revoked(console, None, database, revoke_key(database, None, options.revoke))
    else:
        _show_key(console, None, database, make_admin(database))


@command(key, "add")
def add_key(console: Console, options: TenantOptions) -> None:
    """Make a tenant's second key and show it, this once.

    The first one opens as before, until it is revoked.

    \b
    Example:
      laura tenants key add acme
    """
    from laura.serve.tenant_changes import add_key as add_tenant_key

    database, name = options.opened(), options.name
    _show_key(console, name, database, add_tenant_key(database, name))


@command(key)
def revoke(console: Console, options: RevokeOptions) -> None:
    """Take a key away.

    Whoever holds a key finds its ID by `printf %s KEY | sha256sum`.

    \b
    Example:
      laura tenants key revoke acme 0f343b0931126
    """
    from laura.serve.tenant_changes import revoke_key

    database, name = options.opened(), options.name
    _show_revoked(console, name, database, revoke_key(database, name, options.wanted))


def _limit(option: str, text: str) -> int | None:
    try:
        return None if text == "none" else int(text)
    except ValueError:
        raise UsageError(f"{option} takes a whole number or none, came {text!r}") from None


def _show_key(console: Console, name: str | None, database: Database, made: str) -> None:
    from laura.serve.auth import hash_of_key, key_id

    whose = "The admin's" if name is None else f"{name}'s"
    made_id = key_id(hash_of_key(made))
    text = (
        f"{whose} key, shown this once (only its SHA-256 is kept, in {database.name}):\n\n"
        f"  {made}\n\nIts ID is {made_id}. {TAKEN_IN}"
    )
    value = {"tenant": name, "key": made, "id": made_id, "database": database.name}
    console.answer(value, text)


def _show_revoked(console: Console, name: str | None, database: Database, gone: str) -> None:
    whose = "the admin" if name is None else name
    value = {"tenant": name, "revoked": gone, "database": database.name}
    console.answer(value, f"The key {gone} of {whose} is revoked.\n{TAKEN_IN}")


def _tenant_json(name: str, one: TenantSettings) -> dict[str, Any]:
    from laura.serve.auth import key_id

    keys = [key_id(each) for each in one.keys]
    return {"name": name, **one.model_dump(mode="json"), "keys": keys, "expired": one.expired()}


def _rules_text(one: TenantSettings) -> str:
    """What a tenant may do, on one line."""
    models = [*(["base"] if one.base else []), *one.adapters]
    words = [f"use {', '.join(models) or 'nothing'}"]
    limits = (
        (one.requests_per_minute, "requests a minute"),
        (one.tokens_per_minute, "tokens a minute"),
        (one.tokens_per_day, "tokens a day"),
        (one.concurrent, "at a time"),
    )
    words += [f"{limit:,} {what}" for limit, what in limits if limit is not None]
    words.append(f"priority {one.priority:g}")
    if one.expires is not None:
        past = "EXPIRED at" if one.expired() else "until"
        words.append(f"{past} {one.expires:%Y-%m-%d %H:%M} UTC")
    return "; ".join(words)
