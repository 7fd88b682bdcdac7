"""What cut a session's latest turn off. Only adds: older releases need not know of it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add ``sessions.turn_cut``; see `holdoverd.catalogue.schema`."""
    op.add_column("sessions", sa.Column("turn_cut", sa.Text(), nullable=True))
