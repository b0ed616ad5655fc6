"""The child runs a program as `main.py`, and decodes one that is escaped too often."""

import sys

import pytest

from agent_kit.sandbox.child import decode, run


@pytest.mark.parametrize(
    ("source", "decoded"),
    [
        (r"print(1)\nprint(2)", "print(1)\nprint(2)"),
        (r"s = 'ü世'\nprint(s)", "s = 'ü世'\nprint(s)"),
        (r"print('a\nb')", r"print('a\nb')"),
        ("def broken(:", "def broken(:"),
        ("\\N{", "\\N{"),
    ],
)
def test_only_a_program_escaped_too_often_is_decoded(source, decoded):
    assert decode(source) == decoded


def test_the_program_runs_as_main(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setattr(sys, "argv", [])
    assert run("import sys\nprint(__name__, sys.argv)") == 0
    assert run("raise RuntimeError('no')") == 1
    with pytest.raises(SystemExit):
        run("raise SystemExit(3)")
    captured = capsys.readouterr()
    assert captured.out == "__main__ ['main.py']\n"
    assert 'File "main.py", line 1, in <module>\n    raise RuntimeError' in captured.err
