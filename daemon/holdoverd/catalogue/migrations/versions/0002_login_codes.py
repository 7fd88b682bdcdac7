"""Codes that log one more browser in. Only adds: releases of schema 1 need not know of them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create ``login_codes``; see `holdoverd.catalogue.schema`."""
    op.create_table(
        "login_codes",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.name"], name=op.f("fk_login_codes_owner")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_login_codes")),
    )
    op.create_index(op.f("ix_login_codes_expires_at"), "login_codes", ["expires_at"])
