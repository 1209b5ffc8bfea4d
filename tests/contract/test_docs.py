"""What the documentation says of specs, commands and files is so. tests/dist/test_docs_commands.py runs its commands."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from pages import PAGES, ROOT, Block, blocks, find, parse, sentences, split

from launcher import strategies
from launcher.job.load import load_spec

SPECS = [block for page in PAGES for block in blocks(page) if block.spec()]
# Words that stand for what a reader puts there.
STANDS_FOR = {"N": "0", "SECONDS": "1", "...": ""}


def test_there_are_specs() -> None:
    assert len(SPECS) > 5
    assert ROOT / "README.md" in {block.page for block in SPECS}


@pytest.mark.parametrize("block", SPECS, ids=lambda block: block.where)
def test_specs_are_right(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(block.completed(), encoding="utf-8")
    loaded = load_spec(path)
    parallel = loaded.spec.parallel
    if parallel.strategy != "auto":
        options = strategies.get(parallel.strategy).Options
        loaded.check_section("parallel.options", options, parallel.options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_sentences_exist(page: Path) -> None:
    for line, token in sentences(page):
        if token.type == "code_inline" and token.content.startswith("launcher "):
            said = split(re.sub(r"\[[^\]]*\]", "", token.content))
            words = tuple(filter(None, (STANDS_FOR.get(word, word) for word in said)))
            try:
                if find(words)[1]:  # else it is only a name
                    parse(words)
            except Exception as error:
                raise AssertionError(f"{page}:{line}: `{token.content}`: {error}") from error


def test_python_is_python() -> None:
    snippets = [block for page in PAGES for block in blocks(page) if block.info == "python"]
    assert snippets
    for block in snippets:
        compile(block.text, block.where, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for line, token in sentences(page):
        target = unquote(str(token.attrs.get("href", "")))
        if not target or re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), f"{page}:{line}: {target}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page}:{line}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {
        (index.parent / str(token.attrs["href"]).partition("#")[0]).resolve()
        for _, token in sentences(index)
        if "href" in token.attrs
    }
    missing = {page for page in PAGES if "decisions" not in page.parts} - linked - {index}
    assert not {page for page in missing if ROOT / "docs" in page.parents}


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", head.lower()) for head in heads]
    return {head.strip().replace(" ", "-") for head in plain}
