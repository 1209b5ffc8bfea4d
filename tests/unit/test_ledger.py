"""Journals, attempts and their fences, claims."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import pytest
from ledger_runs import FIRST, answer, fail, make_run, write

from launcher import ledger
from launcher.errors import Busy
from launcher.input.results import decode_line, encode_line, read_head
from launcher.records import Attempt, Failure, Generation
from launcher.run import Run, read_json

SECOND = Attempt(0, 2)


def done(run: Run) -> list[int]:
    return [int(row) for row in ledger.finished_rows(run).nonzero()[0]]


def progress(run: Run) -> tuple[int, int]:
    """Rows done (failed ones included), and rows failed."""
    finished = ledger.Finished(run).update()
    return int(finished.done.sum()), int(finished.failed.sum())


@pytest.mark.parametrize(
    "record",
    [
        Generation(
            7, 'q"\\u00e9, "code": "', 'line\n\u2028\U0001f600 "code": \x00', "length", 1, 2
        ),
        Failure(12345678, "é" * 300, "too_long", "why"),
    ],
)
def test_a_record_is_one_line_and_comes_back_as_it_was(record: Generation | Failure) -> None:
    line = encode_line(record)
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert read_head(line) == (record.index, isinstance(record, Failure))
    assert decode_line(line) == record


def test_no_cut_or_flipped_line_passes_for_a_record() -> None:
    line = encode_line(answer(3))
    assert all(read_head(line[:cut]) is None for cut in range(len(line)))
    assert all(
        read_head(bytes([*line[:i], line[i] ^ 1, *line[i + 1 :]])) is None for i in range(len(line))
    )


def test_appended_rows_are_on_disk_without_closing_and_counted_when_they_are(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, 10)
    with ledger.Journal(run, FIRST, 0) as journal:
        journal.append(answer(2))
        journal.append(fail(5))
        deadline = threading.Event()
        while journal.synced < 2 and not deadline.wait(0.01):
            pass
        assert done(run) == [2, 5]
        assert progress(run) == (2, 1)
        threads = {thread.name for thread in threading.enumerate()}
        assert "journal" in threads
    assert "journal" not in {thread.name for thread in threading.enumerate()}
    assert journal.synced == 2
    with pytest.raises(ValueError, match="closed"):
        journal.append(answer(6))


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    with ledger.Journal(run, FIRST, 0), pytest.raises(Busy):
        ledger.Journal(run, FIRST, 0)
    with pytest.raises(Busy):
        ledger.Journal(run, FIRST, 0)


def test_threads_may_append_to_one_journal(tmp_path: Path) -> None:
    run = make_run(tmp_path, 400)
    with ledger.Journal(run, FIRST, 0) as journal:

        def work(first: int) -> None:
            for row in range(first, 400, 4):
                journal.append(answer(row))

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert done(run) == list(range(400))


def test_rows_that_are_bad_in_the_input_are_finished_from_the_start(tmp_path: Path) -> None:
    run = make_run(tmp_path, [{"prompt": "a"}, {"id": "no prompt"}, {"prompt": "b"}])
    assert done(run) == [1]
    assert progress(run) == (1, 1)
    assert ledger.missing_rows(run) == 2


def test_a_torn_tail_is_not_a_row_and_is_read_again_when_it_is_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path, 5)
    path, line = run.journal(FIRST, 0), encode_line(answer(1))
    path.write_bytes(encode_line(answer(0)) + line[:20])
    finished = ledger.Finished(run).update()
    assert finished.done.tolist() == [True, False, False, False, False]
    path.write_bytes(encode_line(answer(0)) + line)
    assert finished.update().done.tolist() == [True, True, False, False, False]


def test_a_damaged_record_among_whole_ones_is_told_and_its_row_is_not_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path, 5)
    lines = [encode_line(answer(row)) for row in range(4)]
    hole = bytes(len(lines[1]) - 30)  # what a lost page of a network filesystem looks like
    damaged = lines[1][:30] + hole
    run.journal(FIRST, 0).write_bytes(lines[0] + damaged + lines[2] + lines[3][:-5] + b"xxxx\n")
    with caplog.at_level("WARNING", logger="launcher"):
        assert done(run) == [0]
    run.journal(FIRST, 0).write_bytes(lines[0] + damaged + b"\n" + lines[2] + lines[3])
    caplog.clear()
    with caplog.at_level("WARNING", logger="launcher"):
        assert done(run) == [0, 2, 3]
    assert f"byte {len(lines[0])} is damaged" in caplog.text


def test_attempts_are_numbered_by_world_and_end_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    attempts = [ledger.open_attempt(run, world, {"launch": "x"}) for world in (0, 1, 0)]
    assert [attempt.name for attempt in attempts] == ["w0000-a0001", "w0001-a0001", "w0000-a0002"]
    assert [ledger.is_over(run, attempt) for attempt in attempts] == [True, False, False]
    ledger.end_attempt(run, attempts[1], {"kind": "drained"})
    ledger.end_attempt(run, attempts[1], {"kind": "failed"})
    assert ledger.is_over(run, attempts[1])
    assert read_json(run.attempt_file(attempts[1], "ended"))["kind"] == "drained"
    told = read_json(run.attempt_file(attempts[0], "attempt"))
    assert told["launch"] == "x"
    assert told["started"] > 0


def test_an_attempt_that_somebody_else_opens_at_the_same_moment_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, 1)
    ledger.open_attempt(run, 0, {})
    monkeypatch.setattr(
        Run, "list_attempts", lambda run, world=None: []
    )  # as it looked a moment before
    with pytest.raises(Busy):
        ledger.open_attempt(run, 0, {})


def test_an_attempt_whose_agent_died_before_saying_anything_fences_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, 2)
    first = ledger.open_attempt(run, 0, {})
    run.attempt_dir(SECOND).mkdir()
    write(run, first, 0, answer(0))
    assert not ledger.is_over(run, first)
    assert done(run) == [0]
    assert ledger.open_attempt(run, 0, {}) == Attempt(0, 3)
    assert ledger.is_over(run, first)


def test_a_zombie_can_not_add_rows_once_a_newer_attempt_is_open(tmp_path: Path) -> None:
    run = make_run(tmp_path, 6)
    first = ledger.open_attempt(run, 0, {})
    other = ledger.open_attempt(run, 1, {})
    with ledger.Journal(run, first, 0) as zombie:
        zombie.append(answer(0))
        while zombie.synced < 1:
            threading.Event().wait(0.01)
        second = ledger.open_attempt(run, 0, {})
        zombie.append(answer(1))
    write(run, first, 1, answer(2))  # a rank that woke up late
    write(run, other, 0, answer(3))
    write(run, second, 0, answer(4))
    assert done(run) == [0, 3, 4]
    ledger.open_attempt(run, 0, {})  # sees a longer journal; the first fence holds
    assert done(run) == [0, 3, 4]
    with pytest.raises(Busy, match="is over"):
        ledger.Claims(run, second, 0).next()


def test_one_rank_gets_every_chunk_once_and_then_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, 100)
    attempt = ledger.open_attempt(run, 0, {})
    claims = ledger.Claims(run, attempt, 0)
    chunks = list(iter(claims.next, None))
    assert sorted(row for chunk in chunks for row in chunk.rows) == list(range(100))
    assert claims.next() is None
    assert ledger.Claims(run, attempt, 1).next() is None
    assert run.claim(0, 0).read_text() == "w0000-a0001 r0\n"


def test_ranks_start_apart_and_share_all(tmp_path: Path) -> None:
    run = make_run(tmp_path, 320, writers=4)
    attempt = ledger.open_attempt(run, 0, {})
    ranks = [ledger.Claims(run, attempt, rank) for rank in range(4)]
    starts = sorted(chunk.number for claims in ranks if (chunk := claims.next()))
    assert min(b - a for a, b in pairwise(starts)) >= 5
    seen = set(starts)
    while chunks := [chunk for claims in ranks if (chunk := claims.next())]:
        assert seen.isdisjoint(chunk.number for chunk in chunks)
        seen |= {chunk.number for chunk in chunks}
    assert seen == set(range(64))


def test_finished_rows_are_not_handed_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, 32)  # chunks of 2
    first = ledger.open_attempt(run, 0, {})
    write(run, first, 0, answer(0), answer(1), fail(2))
    second = ledger.open_attempt(run, 0, {})
    rows = [row for chunk in iter(ledger.Claims(run, second, 0).next, None) for row in chunk.rows]
    assert sorted(rows) == list(range(3, 32))


def test_chunks_of_an_attempt_that_is_over_are_claimed_again_with_what_it_left(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, 32)
    lost, live = ledger.open_attempt(run, 0, {}), ledger.open_attempt(run, 1, {})
    mine = ledger.Claims(run, live, 0)
    chunk = ledger.Claims(run, lost, 0).next()
    assert chunk is not None
    others = list(iter(mine.next, None))
    assert chunk.number not in {other.number for other in others}
    write(run, lost, 0, answer(chunk.rows[0]))
    assert mine.next() is None
    ledger.end_attempt(run, lost, {"kind": "failed"})
    stolen = mine.next()
    assert stolen is not None
    assert (stolen.number, stolen.generation) == (chunk.number, 1)
    assert stolen.rows == chunk.rows[1:]
    assert mine.next() is None


def test_a_chunk_can_be_lost_and_claimed_again_and_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    for generation in range(12):
        attempt = ledger.open_attempt(run, 0, {})
        chunk = ledger.Claims(run, attempt, 0).next()
        assert chunk is not None
        assert chunk.generation == generation


def test_a_claim_that_does_not_say_whose_it_is_may_be_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    attempt = ledger.open_attempt(run, 0, {})
    run.claim(0, 0).touch()
    chunk = ledger.Claims(run, attempt, 0).next()
    assert chunk is not None
    assert chunk.generation == 1
