"""Browsers that are told of sessions which others share, too. Only adds."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add ``subscriptions.shared``; see `holdoverd.catalogue.schema`."""
    op.add_column(
        "subscriptions",
        sa.Column("shared", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
