"""/docs: the OpenAPI document as a page that loads nothing from elsewhere, for machines without a network."""

from apiflask import APIBlueprint
from flask import Response, current_app, render_template_string

docs = APIBlueprint("docs", __name__, enable_openapi=False)

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ info.title }} {{ info.version }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
  code, summary b { font-family: ui-monospace, monospace } summary { cursor: pointer; padding: .3rem 0 }
  summary b { display: inline-block; min-width: 4rem } details { border-top: 1px solid #ddd }
  details p { white-space: pre-line }
  body { overflow-wrap: anywhere } td code { white-space: normal }
  table { border-collapse: collapse; margin: .5rem 0 1rem } td { padding: .1rem 1rem .1rem 0; vertical-align: top }
</style>
<h1>{{ info.title }} {{ info.version }}</h1>
<p>{{ info.description }}</p>
<p>For programs: <a href="/openapi.json">/openapi.json</a></p>
{% for path, operations in paths.items() %}{% for method, operation in operations.items() %}
<details><summary><b>{{ method | upper }}</b> <code>{{ path }}</code> {{ operation.summary }}</summary>
  <p>{{ operation.description }}</p>
  <table>
  {% for parameter in operation.parameters %}
    <tr><td><code>{{ parameter.name }}</code><td>{{ parameter.in }}{{ ", required" if parameter.required }}
      <td>{{ parameter.schema.description }}
  {% endfor %}
  {% for media_type in (operation.requestBody or {}).content %}
    <tr><td>body<td><code>{{ media_type }}</code><td>
    {% set name = ((operation.requestBody.content[media_type].schema or {})["$ref"] or "").split("/")[-1] %}
    {% if name %}<a href="#{{ name }}">{{ name }}</a>
      <code>{{ components.schemas[name].examples[0] | tojson }}</code>{% endif %}
  {% endfor %}
  {% for status, response in operation.responses.items() %}
    {% set sent = response.content["application/json"].schema if "application/json" in (response.content or {}) %}
    {% set name = ((sent or {})["$ref"] or "").split("/")[-1] %}
    <tr><td>{{ status }}<td>{{ response.content | join(", ") }}<td>{{ response.description }}
      {% if name %}<a href="#{{ name }}">{{ name }}</a>{% endif %}
  {% endfor %}
  </table>
</details>
{% endfor %}{% endfor %}
<h2>What the fields mean</h2>
{% for name, schema in components.schemas | dictsort %}
<details><summary><code>{{ name }}</code></summary>
  <p id="{{ name }}">{{ schema.description }}</p>
  <table>
  {% for field, said in (schema.properties or {}).items() %}
    <tr><td><code>{{ field }}</code><td>{{ "required" if field in (schema.required or []) }}<td>{{ said.description }}
  {% endfor %}
  </table>
</details>
{% endfor %}
</html>
"""


@docs.get("/docs")
def page() -> str:
    """Every operation with its parameters and answers."""
    spec: Response = current_app.view_functions["openapi.spec"]()  # type: ignore[assignment]
    return render_template_string(_PAGE, **spec.get_json())
