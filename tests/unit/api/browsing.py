"""A browser without scripts: it keeps cookies, reads forms and sends them as their pages mean them."""

import re
from html.parser import HTMLParser
from typing import Any

from flask import Flask
from werkzeug.datastructures import MultiDict
from werkzeug.test import TestResponse

_ACCEPT = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


class Browser:
    """One reader at the console."""

    def __init__(self, app: Flask, key: str | None = None) -> None:
        self.client = app.test_client()
        self.csrf = ""
        if key is not None:
            assert self.sign_in(key).status_code == 303

    def sign_in(self, key: str, then: str = "") -> TestResponse:
        self.get("/sign-in")
        answer = self.post("/sign-in", key=key, then=then)
        if answer.status_code == 303:
            self.get("/targets")
        return answer

    def get(self, path: str, **headers: str) -> TestResponse:
        answer = self.client.get(path, headers=_ACCEPT | headers)
        if found := re.search(r'name="csrf" value="([^"]+)"', answer.get_data(as_text=True)):
            self.csrf = found[1]
        return answer

    def post(self, path: str, /, **fields: Any) -> TestResponse:
        """Send fields with the word of the last page; a name with a dot is given in a dict under `also`."""
        also = fields.pop("also", {})
        return self.client.post(path, data={"csrf": self.csrf, **fields, **also}, headers=_ACCEPT)

    def form(self, path: str, action: str) -> MultiDict[str, str]:
        """The fields of a form as a page holds them."""
        reader = _Forms()
        reader.feed(self.get(path).get_data(as_text=True))
        return reader.forms[action]


class _Forms(HTMLParser):
    """What every form of a page would send untouched."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: dict[str, MultiDict[str, str]] = {}
        self._form: MultiDict[str, str] | None = None
        self._select = ""
        self._text = ""

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in given}
        if tag == "form":
            self._form = self.forms.setdefault(values.get("action", ""), MultiDict())
        if self._form is None:
            return
        if tag == "select":
            self._select = values["name"]
        elif tag == "option" and "selected" in values and self._select:
            self._form[self._select] = values.get("value", "")
        elif tag == "textarea":
            self._text = values["name"]
            self._form[self._text] = ""
        elif tag == "input" and "name" in values:
            unchecked = values.get("type") in ("checkbox", "radio") and "checked" not in values
            if not unchecked and values.get("type") != "file":
                self._form.add(values["name"], values.get("value", ""))

    def handle_data(self, data: str) -> None:
        if self._text and self._form is not None:
            self._form[self._text] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        elif tag == "select":
            self._select = ""
        elif tag == "textarea":
            self._text = ""
