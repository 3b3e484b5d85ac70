"""Who may use the server: tenants, their keys, what each may use; without any, this machine.

No torch, no web framework.

    # tenants.yaml, for `laura tenants import`
    tenants:
      NAME:
        keys: [SHA-256 of a key, ...]     # two at most: the old one and the new one
        adapters: [support-*, maths]      # of the library; "*" is all of them
        base: true                        # whether the base may be asked too
        requests_per_minute: 60           # left out: no limit
        tokens_per_minute: 100000
        tokens_per_day: 10000000
        concurrent: 8
        priority: 2.0
        expires: 2027-01-31               # from this moment on keys are refused; UTC
    admin:
      keys: [SHA-256 of a key, ...]

Only hashes of keys are kept, so whoever reads them can use none.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from laura.recipe.checks import validate
from laura.recipe.document import YamlDocument
from laura.recipe.sections import Section, short
from laura.results.errors import Fault, RecipeError, StoreError, UsageError
from laura.results.inputs import MOST_TENANTS_BYTES, open_regular, rest_of
from laura.results.store import disk_faults
from laura.serve.settings import LOOPBACK

KEY_START = "sk-laura-"
MOST_KEYS = 2
# Of tenants and of adapters: such a name is no path, and needs no quoting in a URL.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
# The admin, and whom metrics count together; "-", for nobody, is no name anyway.
RESERVED = ("admin", "other")
NAME_RULE = "1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit"
MOST_VALUES = 10**7


def _name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(f"a name must be {NAME_RULE}, came {short(name)}")
    if name.casefold() in RESERVED:
        raise ValueError(f"{name} is what logs and metrics call somebody else; take another name")
    return name


def _adapter(pattern: str) -> str:
    if pattern != "*" and not re.fullmatch(NAME_PATTERN + r"\*?", pattern):
        allowed = f'"*" for all, a name ({NAME_RULE}), or the beginning of one and "*"'
        raise ValueError(f"must be {allowed}, came {short(pattern)}")
    return pattern


def _key_hash(text: str) -> str:
    # What came is not told: it may be a key that someone pasted here.
    if not re.fullmatch("[0-9a-f]{64}", text):
        made = "`laura tenants key add NAME` makes a key and enters its hash"
        raise ValueError(f"must be the SHA-256 of a key, 64 small hexadecimal digits; {made}")
    return text


def _few_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    if len(keys) > MOST_KEYS:
        why = "the old one and the new one while clients change over"
        raise ValueError(f"holds {len(keys)} keys, {MOST_KEYS} are the most: {why}; remove one")
    return keys


def _listed(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list, came {short(value)}")
    return tuple(value)


def _moment(value: Any) -> Any:
    """A moment in UTC out of what YAML or a person wrote; a day is its first moment."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(_NO_MOMENT + short(value)) from None
    elif type(value) is date:
        value = datetime(value.year, value.month, value.day)
    elif value is not None and not isinstance(value, datetime):
        raise ValueError(_NO_MOMENT + short(value))
    if value is None or value.tzinfo is None:
        return value and value.replace(tzinfo=UTC)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError(_NO_MOMENT + short(value)) from None


_NO_MOMENT = (
    "must be a day, such as 2027-01-31 (its first moment, UTC), or a moment, such as "
    "2027-01-31T12:00:00Z, came "
)
Name = Annotated[str, AfterValidator(_name)]
Keys = Annotated[
    tuple[Annotated[str, AfterValidator(_key_hash)], ...],
    BeforeValidator(_listed),
    AfterValidator(_few_keys),
]
Adapters = Annotated[tuple[Annotated[str, AfterValidator(_adapter)], ...], BeforeValidator(_listed)]


class TenantSettings(Section):
    """What is said of a tenant."""

    keys: Keys = Field((), description="SHA-256 of each key, hexadecimal.")
    adapters: Adapters = Field(
        (), description='Adapters it may use: names, "prefix*", or "*" for all.'
    )
    base: bool = Field(True, description="Whether it may ask the base itself.")
    requests_per_minute: int | None = Field(None, ge=1, le=10**6, description="None: no limit.")
    tokens_per_minute: int | None = Field(
        None, ge=1, le=10**10, description="Of prompts and answers together; None: no limit."
    )
    tokens_per_day: int | None = Field(
        None, ge=1, le=10**10, description="Likewise in a day; None: no limit."
    )
    concurrent: int | None = Field(
        None, ge=1, le=10**5, description="Requests at the same time; None: no limit."
    )
    priority: float = Field(
        1.0, ge=0.01, le=100, description="Share of the engine while several tenants wait."
    )
    expires: Annotated[datetime | None, BeforeValidator(_moment)] = Field(
        None, description="From this moment on (UTC) its keys are refused; None: never."
    )

    def expired(self, at: datetime | None = None) -> bool:
        """Whether its keys are refused at a moment; now by default."""
        return self.expires is not None and self.expires <= (at or datetime.now(UTC))


class Tenant(TenantSettings):
    """A tenant, with its name; see `TenantSettings`."""

    name: Name


class AdminSection(Section):
    """Who may load, unload, pin and reload."""

    keys: Keys = Field((), description="SHA-256 of each admin key, hexadecimal.")


class TenantsFile(Section):
    """All tenants, as a file says them and the database keeps them."""

    tenants: dict[Name, TenantSettings] = Field(default_factory=dict)
    admin: AdminSection = AdminSection()


LOCAL = Tenant(name="local", adapters=("*",))
"""The one tenant of a server without a database: everything allowed, no limits."""


class Tenants:
    """All tenants of a server, found by key or by name.

    Args:
        tenants: Each with a name of its own.
        admin_keys: SHA-256 of each admin key, hexadecimal.
    """

    def __init__(self, tenants: Iterable[Tenant], admin_keys: Iterable[str] = ()) -> None:
        self._by_name = {tenant.name: tenant for tenant in tenants}
        self._secret = secrets.token_bytes(32)
        self._by_mark = {
            self._mark(one): (tenant, tenant.expires or _NEVER)
            for tenant in self._by_name.values()
            for one in tenant.keys
        }
        self._admins = {self._mark(one) for one in admin_keys}

    @classmethod
    def of(cls, file: TenantsFile) -> Tenants:
        """Those that were said to be."""
        named = (Tenant(name=name, **one.model_dump()) for name, one in file.tenants.items())
        return cls(named, file.admin.keys)

    @property
    def names(self) -> tuple[str, ...]:
        """Every tenant's name."""
        return tuple(self._by_name)

    def get(self, name: str) -> Tenant | None:
        """The tenant of this name."""
        return self._by_name.get(name)

    def find(self, key: str, at: datetime | None = None) -> tuple[Tenant | None, bool]:
        """What a key is. A client must not learn why its key is refused.

        A key that was never made, one that was revoked and one that has expired cost the
        same steps.

        Args:
            key: As the client sent it.
            at: Moment to judge expiry by; now by default.

        Returns:
            Whose it is, also where it has expired, so that a log can name them; and whether it
            opens anything.
        """
        tenant, end = self._by_mark.get(self._mark(hash_of_key(key)), _NOBODY)
        return tenant, (at or datetime.now(UTC)) < end

    @property
    def has_admin(self) -> bool:
        """Whether any key opens the admin API."""
        return bool(self._admins)

    def is_admin(self, key: str) -> bool:
        """Whether a key opens the admin API."""
        return self._mark(hash_of_key(key)) in self._admins

    def _mark(self, key_hash: str) -> bytes:
        """What the tables go by: a hash under a secret that this process drew.

        Comparing entries of a table takes as long as their beginnings agree. Nobody outside
        can tell what a key's mark is, so that time says nothing about any key; and looking
        one up costs the same among one tenant as among thousands.
        """
        return hmac.digest(self._secret, key_hash.encode("ascii"), "sha256")


_NEVER = datetime.max.replace(tzinfo=UTC)
_NOBODY: tuple[Tenant | None, datetime] = (None, datetime.min.replace(tzinfo=UTC))


def new_key() -> str:
    """A new key, 256 random bits: `sk-laura-` and 43 characters."""
    return KEY_START + secrets.token_urlsafe(32)


def hash_of_key(key: str) -> str:
    """SHA-256 of a key, hexadecimal: what is kept of it.

    Slow hashes with salts (argon2, scrypt) protect passwords, which people choose among few.
    A key is drawn from 2**256, so nobody finds it by trying, however fast the hash; and a
    slow one would let strangers keep the server busy with wrong keys.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def key_id(key_hash: str) -> str:
    """How a key is named where it must not be shown: the first digits of its SHA-256."""
    return key_hash[:12]


def without_keys(text: str) -> str:
    """The text with every key in it struck out."""
    return re.sub(rf"{KEY_START}[\w-]+", f"{KEY_START}...", text)


def may_use(tenant: Tenant, adapter: str | None) -> bool:
    """Whether a tenant may use an adapter; None is the base. Case counts."""
    if adapter is None:
        return tenant.base
    return any(
        adapter.startswith(one[:-1]) if one.endswith("*") else adapter == one
        for one in tenant.adapters
    )


def read_tenants(path: Path) -> TenantsFile:
    """Read a tenants file that nobody but its owner can change.

    Raises:
        StoreError: it is missing, no regular file, others may write it, or it has faults; every
            fault is listed with its line.
    """
    with disk_faults(path), open_regular(path) as file:
        came = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if came & (stat.S_IWGRP | stat.S_IWOTH):
            raise StoreError(
                f"{path} can be written by others (mode {came:03o}), who could let themselves in; "
                f"look through it, then: chmod go-w {path}"
            )
        content = rest_of(file, path, MOST_TENANTS_BYTES)
    try:
        return parse_tenants(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from error


def parse_tenants(text: str, source: str) -> TenantsFile:
    """Check the text of a tenants file whole.

    Raises:
        StoreError: it has faults; every one is listed with its line, and no key is told.
    """
    try:
        document = YamlDocument.parse(text, source, MOST_VALUES)
        return document.accepted(*check_tenants(document.data))
    except RecipeError as error:
        raise StoreError(without_keys(str(error))) from None


def check_tenants(data: dict[str, Any]) -> tuple[TenantsFile | None, list[Fault]]:
    """A tenants file of values that were read, or every fault in them."""
    file, faults = validate(TenantsFile, data)
    return file, [*faults, *_cross_faults(data)]


def _cross_faults(data: dict[str, Any]) -> Iterable[Fault]:
    """Faults between tenants; `data` may hold anything."""
    named = data.get("tenants")
    tenants = named if isinstance(named, dict) else {}
    by_folded: dict[str, str] = {}
    for name in map(str, tenants):
        other = by_folded.setdefault(name.casefold(), name)
        if other != name:
            # One of them would be taken for the other in logs, by people.
            yield Fault(f"tenants.{name}", f"differs from {other} by case alone; rename one")
    owners: dict[str, str] = {}
    holders = {f"tenants.{name}": one for name, one in tenants.items()}
    for where, one in {**holders, "admin": data.get("admin")}.items():
        keys = one.get("keys") if isinstance(one, dict) else None
        listed = keys if isinstance(keys, list) else []
        for place, key in enumerate(listed):
            owner = owners.setdefault(str(key), where)
            if owner != where or key in listed[:place]:
                yield Fault(f"{where}.keys.{place}", f"is a key of {owner} already; remove one")


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach a server that listens at this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(host: str, has_tenants: bool) -> None:
    """Refuse to open a server without keys to other machines.

    Raises:
        UsageError: the address is no loopback address and there are no tenants.
    """
    if not has_tenants and not is_loopback(host):
        raise UsageError(
            f"--host {host} would let other machines in, and without --database URL nobody needs "
            f"a key. Make keys with `laura tenants add NAME`, or leave --host out to serve this "
            f"machine alone ({LOOPBACK})"
        )
