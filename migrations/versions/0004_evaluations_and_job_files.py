"""evaluations beside jobs, files that a job leaves beside its variants

Revision 0004, after 0003.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("kind", sa.Text(), nullable=False, server_default="job"))
    op.add_column("jobs", sa.Column("result", sa.Text(), nullable=True))
    op.drop_index("ix_jobs_project_id_id", "jobs")
    op.drop_index("ix_jobs_project_id_status_id", "jobs")
    op.create_index("ix_jobs_project_id_kind_id", "jobs", ["project_id", "kind", "id"])
    op.create_index("ix_jobs_project_id_kind_status_id", "jobs", ["project_id", "kind", "status", "id"])
    op.create_table(
        "job_files",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_files_job_id"),
        sa.PrimaryKeyConstraint("job_id", "path", name="pk_job_files"),
    )
    op.create_index("ix_job_files_sha256", "job_files", ["sha256"])


def downgrade() -> None:
    op.drop_table("job_files")
    op.execute(sa.text("DELETE FROM webhook_deliveries WHERE type LIKE 'evaluation.%'"))
    for table in ("events", "attempts"):
        op.execute(sa.text(f"DELETE FROM {table} WHERE job_id IN (SELECT id FROM jobs WHERE kind <> 'job')"))
    op.execute(sa.text("DELETE FROM jobs WHERE kind <> 'job'"))
    op.drop_index("ix_jobs_project_id_kind_status_id", "jobs")
    op.drop_index("ix_jobs_project_id_kind_id", "jobs")
    with op.batch_alter_table("jobs") as batch:
        batch.drop_column("result")
        batch.drop_column("kind")
    op.create_index("ix_jobs_project_id_id", "jobs", ["project_id", "id"])
    op.create_index("ix_jobs_project_id_status_id", "jobs", ["project_id", "status", "id"])
