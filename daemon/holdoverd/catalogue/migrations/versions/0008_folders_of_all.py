"""An index for folders of everybody's files, as an administrator lists them. Only adds."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """See `holdoverd.catalogue.schema`."""
    op.create_index(
        "ix_files_path_name_id",
        "files",
        ["path", "name", "id"],
        sqlite_where=sa.text("state <> 'deleted'"),
    )
