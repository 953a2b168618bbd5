"""The REST service. Flask, and never torch: what needs a model runs in a worker."""

from apiflask.schema_adapters import registry

from api.records import RecordAdapter

# APIFlask asks this table when a view is decorated, so it must be complete before any view is imported.
registry.register("pydantic", RecordAdapter)
