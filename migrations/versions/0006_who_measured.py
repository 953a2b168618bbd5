"""the key that a measurement was sent with

Revision 0006, after 0005. One new column that may be null: programs of the version before go on working.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("measurements", sa.Column("key_id", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("measurements", "key_id")
