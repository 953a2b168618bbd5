"""priority, memory and halved micro-batches of jobs; when a project last had its turn

Revision 0003, after 0002. New columns only, each nullable or with a default: programs of the version before go on
working while a deploy replaces them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
_TURN = "ix_jobs_project_id_status_priority_created_at"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("halvings", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("priority", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
    op.create_index(_TURN, "jobs", ["project_id", "status", "priority", "created_at"])
    op.add_column("projects", sa.Column("last_claim_at", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("projects", "last_claim_at")
    op.drop_index(_TURN, "jobs")
    for name in ("memory_bytes", "priority", "halvings"):
        op.drop_column("jobs", name)
