"""Markdown of models, rendered as safe HTML."""

from agent_kit.chat.markdown import code_block, render_markdown, split_finished


def test_markdown_of_models_is_rendered() -> None:
    shown = render_markdown(
        "# A\n\n- ~~b~~\n\n```python title=x\nx = 1\n```\n\n    plain\n\n![p](http://x)"
    )
    assert "<h1>" in shown
    assert "<s>b</s>" in shown
    assert 'class="mi"' in shown
    assert '<a href="http://x"' in shown
    assert "<img" not in shown
    assert '"mi"' not in render_markdown("```python\nx = 1", streaming=True)
    assert "<span" not in code_block("x = 1", "no-such-language").split("<pre>")[1]


def test_texts_divide_at_the_end_of_a_block() -> None:
    listing = "- one\n" * 600
    assert split_finished(listing) == ("", listing)
    words = "word " * 5000
    assert [len(part) for part in split_finished("# A\n\n" + words)] == [12_005, 13_000]
    finished, rest = split_finished(words.replace(" ", ""))
    assert (len(finished), len(rest)) == (12_000, 8_000)
