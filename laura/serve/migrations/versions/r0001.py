"""The first tables: tenants, what they used, the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("requests_level", sa.BigInteger),
        sa.Column("tokens_level", sa.BigInteger),
        sa.Column("day_level", sa.BigInteger),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("refused", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(128), sa.ForeignKey("tenants.name", ondelete="CASCADE")),
        sa.Column("place", sa.Integer, nullable=False),
    )
    revisions = op.create_table("revision", sa.Column("number", sa.BigInteger, primary_key=True))
    op.bulk_insert(revisions, [{"number": 0}])
    op.create_table(
        "gates",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("until", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "admissions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False, index=True),
        sa.Column("gate", sa.String(32), nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        *(
            sa.Column(name, sa.String(length), nullable=False)
            for name, length in (
                ("time", 32), ("action", 200), ("actor", 200), ("subject", 200), ("outcome", 200),
            )
        ),
        sa.Column("request", sa.String(200)),
    )  # fmt: skip
