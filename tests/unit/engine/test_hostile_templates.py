"""Chat templates come with a teacher: what they ask for beyond text is bad data, and reaches nothing."""

from pathlib import Path

import pytest

from foundry.engine.encode import encode
from foundry.errors import InvalidData
from foundry.intake.documents import Document, Message
from tests.tiny import new_tokenizer

TALK = Document(key="one", messages=(Message("user", "hello"), Message("assistant", "hi")))
OPEN = "__init__.__globals__"
ESCAPES = {
    "globals of a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ cycler." + OPEN + ".os.popen('touch FILE').read() }}",
    "globals of the loop": "{% for m in messages %}{{ loop." + OPEN + " }}{% endfor %}",
    "import": "{{ self." + OPEN + "['__builtins__']['__import__']('os').system('touch FILE') }}",
    "attr filter": "{{ (messages|attr('__class__')|attr('__base__')).__subclasses__() }}",
    "format string": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "format by map": "{{ ['{0.__class__.__base__.__subclasses__}']|map('format', messages)|list|first }}",
    "change of the data": "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "another file": "{% include '/etc/passwd' %}",
    "module": "{% import 'os' as os %}",
    "endless loop": "{% for i in range(999999999) %}x{% endfor %}",
    "endless recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "division": "{{ 1 / 0 }}",
    "unknown filter": "{{ messages|nothing }}",
    "unfinished": "{% for m in messages %}",
}


@pytest.mark.parametrize("template", ESCAPES.values(), ids=ESCAPES)
def test_a_template_that_reaches_out_is_bad_data_and_reaches_nothing(template: str, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    tokenizer = new_tokenizer(321)
    tokenizer.chat_template = template.replace("FILE", str(witness))
    try:
        said = tokenizer.decode(next(encode([TALK], tokenizer)).ids_T)
    except InvalidData as refused:
        assert "chat template" in refused.message
    else:  # the sandbox gives an empty value for what may not be read
        assert not any(word in said for word in ("<class", "<built-in", "__builtins__", "root:"))
    finally:
        tokenizer.chat_template = None
    assert not witness.exists()
    assert len(TALK.messages or ()) == 2
