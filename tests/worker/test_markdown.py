"""The report as Markdown: whole, the same each time, and what people and models wrote stays words."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.worker.report_jobs import EVIL, changed, real_job
from worker.exports.job_results import JobResults
from worker.exports.markdown import escape, write_markdown
from worker.report_parts import plain_line

READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
JOINER = "\u2060"
BARE_LINK = re.compile(r"https?://|ftp://|www\.|(?:mailto|xmpp):\w|@\w|:\w+:", re.IGNORECASE)
"""What GitHub links, mentions or draws although nothing marks it (GFM 0.29, §6.9)."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> JobResults:
    return real_job(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def text(results: JobResults, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(results, tmp_path_factory.mktemp("md"))


def written(results: JobResults, folder: Path) -> str:
    write_markdown(results, folder / "report.md")
    return (folder / "report.md").read_text(encoding="utf-8")


def tokens(text: str) -> list[Token]:
    """All tokens of a document, those within lines too."""
    return [token for block in READER.parse(text) for token in (block, *(block.children or ()))]


def cells(text: str) -> list[list[str]]:
    """The rows of all tables, as words."""
    rows: list[list[str]] = []
    blocks = READER.parse(text)
    for token, inline in zip(blocks, blocks[1:], strict=False):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("td_open", "th_open"):
            rows[-1].append("".join(child.content for child in inline.children or ()))
    return rows


def shows_only(line: str, words: str) -> bool:
    """Whether a line of Markdown shows these words and has nothing else in it."""
    found = tokens(line)
    kinds = [token.type for token in found]
    if not words:
        return kinds == []
    shown = "".join(token.content for token in found if token.type == "text").replace(JOINER, "")
    return kinds[:2] + kinds[-1:] == ["paragraph_open", "inline", "paragraph_close"] and (
        set(kinds[2:-1]) == {"text"} and shown == words
    )


@pytest.mark.parametrize(
    "words",
    [
        "<script>alert(1)</script>", "<!-- x", "&lt;b&gt; &copy;", "[x](http://e.example)", "![x](y)", "[x]: http://e",
        "# x", "- x", "+ x", "1. x", "12) x", "---", "===", "> x", "    code", "```", "`x`", "*x* __y__ ~~z~~",
        "| a | b |", "\\", "\\<b>", "a\n\n# b", "$x$", "[^1]", "- [ ] x", "x  \ny", "<http://e.example>",
        "http://e.example/?a=b&c", "www.e.example", "WwW.e.example", "a@b.example", "@somebody", "mailto:a@b.example",
        ":smile:", "a\u202ehttp://x", "\x00\x07z", "",
    ],
)  # fmt: skip
def test_words_stay_words(words: str):
    line = escape(words)
    assert shows_only(line, plain_line(words)), line
    assert not BARE_LINK.search(re.sub(r"\\(?=[^\w\s])", "", line))
    (_, (cell,)) = cells(f"| head |\n| --- |\n| {line or ' '} |")
    assert cell.replace(JOINER, "") == plain_line(words)


@given(st.text(alphabet=st.sampled_from(list("ab1 \n\t<>&;#/:.@`*_~[](){}|!\\\"'=+-$é核"))) | st.text())
def test_any_words_stay_words(words: str):
    assert shows_only(escape(words), plain_line(words))


def test_the_document_holds_nothing_but_what_it_is_made_of(text: str):
    kinds = {token.type for token in tokens(text)}
    assert "<b>" in EVIL and "[link](http" in EVIL
    assert kinds & {"html_inline", "html_block", "link_open", "image", "fence", "code_block", "hr"} == set()
    assert kinds >= {"table_open", "blockquote_open", "heading_open", "code_inline"}
    assert not re.search(r"https?://\S", text) and plain_line(EVIL) in "".join(
        token.content for token in tokens(text) if token.type == "text"
    ).replace(JOINER, "")


def test_it_warns_first_and_last(text: str):
    lines = [line for line in text.splitlines() if line]
    assert lines[1].startswith("**Research use only.") and lines[-1].startswith("**Research use only.")


def test_it_answers_and_lists_every_region_with_its_chain(text: str, results: JobResults):
    report = results.report
    rows = {row[-1]: row for row in cells(text) if len(row) == 7}
    for query in report["queries"]:
        assert escape(query["answer"]) in text
    for region in report["regions"]:
        row = rows[region["region_id"]]
        assert row[:2] == [str(region["label"]), f"{region['area_um2']:,.0f} µm²"]
        assert row[2:4] == [region["place"], f"{region['confidence']:.2f}"]
        assert row[4] == ("–" if region["agreement"] is None else f"{region['agreement']:.2f}")
    assert text.count("> **Conclusion:** ") == len(report["regions"]) == 6
    assert "It is `<SEG>`." in text and "Tile 1\\_1. 1 further tile made part" in text


def test_it_says_what_it_was_made_with_and_no_path(text: str, results: JobResults):
    pairs = {row[0]: row[1] for row in cells(text) if len(row) == 2}
    report = results.report
    assert pairs["Revision"] == report["model"]["revision"]
    assert pairs["Content"] == report["slide"]["content_hash"] and len(pairs["Content"]) == 64
    assert (pairs["Threshold"], pairs["Smallest region"]) == ("0.5", "50 µm²")
    assert pairs["Tiles looked at"] == "6 of 6 (100.0 %)"
    assert str(Path(results.spec.slide_path).parent) not in text


def test_tiles_that_failed_are_named_with_reasons(results: JobResults, tmp_path: Path):
    def fail(report: dict[str, Any]) -> None:
        tiles = [{"key": f"0_{n}", "reason": "bad | <i>data</i>", "bbox_px0": [0.0, 0.0, 512.4, 512.0]} for n in (1, 2)]
        reasons = [{"reason": "bad | <i>data</i>", "tiles": 3}]
        report["coverage"] |= {"failed": 3, "coverage": 0.5, "failed_tiles": tiles, "failed_reasons": reasons}

    text = written(changed(results, tmp_path / "job", fail), tmp_path)
    assert "3 tiles failed; nothing is known of what lies in them. Looked at: 50.0 % of the tiles." in text
    assert "The first 2 of them:" in text
    rows = cells(text)
    assert ["0_1", "[0, 0, 512, 512]", "bad | <i>data</i>"] in rows and ["3", "bad | <i>data</i>"] in rows


def test_nothing_found_is_said(results: JobResults, tmp_path: Path):
    def forget(report: dict[str, Any]) -> None:
        report["regions"] = []
        said = {"silent_tiles_said": [{"text": "No | tumour.", "tiles": 6}], "tiles_silent": 6, "second_looks": 0}
        for query in report["queries"]:
            query |= {"answer": "Not found in the 6 tiles looked at.", "found": False, "regions": 0, **said}

    text = written(changed(results, tmp_path / "job", forget), tmp_path)
    assert text.count("Not found in the 6 tiles looked at.") == 2 and "## Regions" not in text
    assert ["6", "No | tumour."] in cells(text) and "6 tiles said no. Most often:" in text


def test_it_is_the_same_each_time(results: JobResults, text: str, tmp_path: Path):
    assert written(results, tmp_path) == text
