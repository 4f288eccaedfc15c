"""Runs the rows of a stage until they are done or the time is over."""

import dataclasses
import sys
import typing

import children

CLOSING_S = 5  # at most so much is kept back for killing, writing and ending
LEAST_S = 3  # with less than this, or with less than its last sample took, no row is started


@dataclasses.dataclass
class Row:
    """One line of a result: `run(limit_s, samples)` gives a sample after those, or raises children.Failed.

    Rows of one group take turns, a sample each in every round; groups come one after the other.
    """

    id: str  # the same in every run, and different for different work
    group: str
    title: str
    asked: dict
    run: typing.Callable
    limit_s: float


def run(store, deadline, rows, rounds=1, retry=False):
    """Rows that have their samples, or failed in an earlier run (unless `retry`), are skipped. Returns whether all
    that was to be run did run."""
    complete = True
    known_failures = set() if retry else {r.id for r in rows if store.row(r.id)["status"] == "failed"}
    failed = set()
    for group in dict.fromkeys(r.group for r in rows):
        for number in range(1, rounds + 1):
            todo = [
                r
                for r in rows
                if r.group == group and r.id not in known_failures | failed and len(store.row(r.id)["samples"]) < number
            ]
            if not todo:
                continue
            if deadline.left() > _reserve(deadline):
                store.state(group=group, round=number)
            for row in todo:
                if not _sample(store, deadline, row, number, rounds, failed):
                    complete = False
    return complete


def _sample(store, deadline, row, number, rounds, failed):
    """Takes one sample. False if there was no time for it."""
    left = deadline.left() - _reserve(deadline)
    samples = store.row(row.id)["samples"]
    if left < max(min(LEAST_S, deadline.seconds / 20), 1.2 * min((s["wall_s"] for s in samples), default=0)):
        store.cut(row.id)
        return False
    try:
        sample = row.run(min(left, row.limit_s), samples)
    except children.TimedOut as e:
        if left < row.limit_s:
            store.cut(row.id)
            say(f"  {row.title}: {store.row(row.id)['why']}")
            return False
        store.fail(row.id, str(e), **e.more)
    except children.Failed as e:
        store.fail(row.id, str(e), **e.more)
    else:
        said = sample.pop("said", "done")
        store.add(row.id, {**sample, "round": number}, rounds)
        say(f"  {row.title}: {said}")
        return True
    failed.add(row.id)
    say(f"  {row.title}: {store.row(row.id)['why']}")
    return True


def _reserve(deadline):
    return min(CLOSING_S, deadline.seconds / 20)


def say(line):
    print(line, file=sys.stderr, flush=True)
