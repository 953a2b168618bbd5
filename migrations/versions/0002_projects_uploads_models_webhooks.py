"""members, scopes, quotas, audit, uploads, models, targets, aliases, webhooks

Revision 0002, after 0001.
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_AREAS = ("datasets", "models", "targets", "jobs", "variants", "webhooks")
_ALL_OF_A_PROJECT = [f"{area}:{verb}" for area in _AREAS for verb in ("read", "write")]
_ALL_OF_A_PROJECT += ["project:read", "project:admin"]


def upgrade() -> None:
    _widen()
    _project_tables()
    _upload_tables()
    _webhook_tables()


def _widen() -> None:
    with op.batch_alter_table("projects") as batch:
        batch.add_column(sa.Column("quota", sa.Text(), nullable=False, server_default="{}"))
    with op.batch_alter_table("projects") as batch:
        batch.alter_column("quota", server_default=None)
    with op.batch_alter_table("api_keys") as batch:
        batch.add_column(sa.Column("scopes", sa.Text(), nullable=True))
        batch.add_column(sa.Column("member_id", sa.Text(), nullable=True))
        batch.add_column(sa.Column("expires_at", sa.Double(), nullable=True))
        batch.add_column(sa.Column("last_used_at", sa.Double(), nullable=True))
    # A key could do all there was. The first project's keys belong to whoever runs the installation.
    keys = sa.table("api_keys", sa.column("scopes", sa.Text()), sa.column("project_id", sa.Text()))
    projects = sa.table("projects", sa.column("id", sa.Text()), sa.column("name", sa.Text()))
    op.execute(keys.update().values(scopes=json.dumps(_ALL_OF_A_PROJECT)))
    first = sa.select(projects.c.id).where(projects.c.name == "default").scalar_subquery()
    everything = json.dumps([*_ALL_OF_A_PROJECT, "installation:admin"])
    op.execute(keys.update().where(keys.c.project_id == first).values(scopes=everything))
    with op.batch_alter_table("api_keys") as batch:
        batch.alter_column("scopes", existing_type=sa.Text(), nullable=False)
    op.drop_index("ix_api_keys_project_id", "api_keys")
    op.create_index("ix_api_keys_project_id_id", "api_keys", ["project_id", "id"])
    op.create_index("ix_api_keys_member_id", "api_keys", ["member_id"])
    op.add_column("datasets", sa.Column("report", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("parent_id", sa.Text(), nullable=True))
    op.create_index("ix_jobs_project_id_status_id", "jobs", ["project_id", "status", "id"])
    op.create_index("ix_events_job_id_type_seq", "events", ["job_id", "type", "seq"])


def _project_tables() -> None:
    op.create_table(
        "members",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_members_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_members"),
        sa.UniqueConstraint("project_id", "name", name="uq_members_project_id_name"),
    )
    op.create_index("ix_members_project_id_id", "members", ["project_id", "id"])
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=True),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_events"),
    )
    op.create_index("ix_audit_events_project_id_id", "audit_events", ["project_id", "id"])
    op.create_table(
        "models",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("family", sa.Text(), nullable=True),
        sa.Column("shape", sa.Text(), nullable=True),
        sa.Column("parameters", sa.BigInteger(), nullable=True),
        sa.Column("context_tokens", sa.BigInteger(), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_models_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
    )
    op.create_index("ix_models_project_id_id", "models", ["project_id", "id"])
    op.create_table(
        "model_files",
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_model_files_model_id"),
        sa.PrimaryKeyConstraint("model_id", "path", name="pk_model_files"),
    )
    op.create_index("ix_model_files_sha256", "model_files", ["sha256"])
    op.create_table(
        "targets",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_targets_project_id"),
        sa.PrimaryKeyConstraint("project_id", "name", name="pk_targets"),
    )
    op.create_table(
        "aliases",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("variant_id", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_aliases_project_id"),
        sa.ForeignKeyConstraint(["variant_id"], ["variants.id"], name="fk_aliases_variant_id"),
        sa.PrimaryKeyConstraint("project_id", "name", name="pk_aliases"),
    )
    op.create_index("ix_aliases_variant_id", "aliases", ["variant_id"])


def _upload_tables() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("part_bytes", sa.BigInteger(), nullable=False),
        sa.Column("dataset_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_uploads_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
    )
    op.create_index("ix_uploads_project_id_id", "uploads", ["project_id", "id"])
    op.create_index("ix_uploads_project_id_sha256", "uploads", ["project_id", "sha256"])
    op.create_index("ix_uploads_status_expires_at", "uploads", ["status", "expires_at"])
    op.create_table(
        "upload_parts",
        sa.Column("upload_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name="fk_upload_parts_upload_id"),
        sa.PrimaryKeyConstraint("upload_id", "number", name="pk_upload_parts"),
    )
    op.create_table(
        "garbage",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_garbage"),
    )


def _webhook_tables() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_webhook_endpoints_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_endpoints"),
    )
    op.create_index("ix_webhook_endpoints_project_id_id", "webhook_endpoints", ["project_id", "id"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("endpoint_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("tries", sa.BigInteger(), nullable=False),
        sa.Column("next_try_at", sa.Double(), nullable=True),
        sa.Column("response_status", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("delivered_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["endpoint_id"], ["webhook_endpoints.id"], name="fk_webhook_deliveries_endpoint_id"),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
    )
    op.create_index("ix_webhook_deliveries_status_next_try_at", "webhook_deliveries", ["status", "next_try_at"])
    op.create_index("ix_webhook_deliveries_endpoint_id_id", "webhook_deliveries", ["endpoint_id", "id"])


def downgrade() -> None:
    for table in (
        "webhook_deliveries", "webhook_endpoints", "garbage", "upload_parts", "uploads", "aliases", "targets",
        "model_files", "models", "audit_events", "members",
    ):  # fmt: skip
        op.drop_table(table)
    op.drop_index("ix_events_job_id_type_seq", "events")
    op.drop_index("ix_jobs_project_id_status_id", "jobs")
    with op.batch_alter_table("jobs") as batch:
        batch.drop_column("parent_id")
    with op.batch_alter_table("datasets") as batch:
        batch.drop_column("report")
    op.drop_index("ix_api_keys_member_id", "api_keys")
    op.drop_index("ix_api_keys_project_id_id", "api_keys")
    op.create_index("ix_api_keys_project_id", "api_keys", ["project_id"])
    with op.batch_alter_table("api_keys") as batch:
        for column in ("last_used_at", "expires_at", "member_id", "scopes"):
            batch.drop_column(column)
    with op.batch_alter_table("projects") as batch:
        batch.drop_column("quota")
