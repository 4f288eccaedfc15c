"""A stage's results: one JSON file, replaced as a whole after every row, and the tables made from it beside it.

    key      engine, device and driver that all rows are of
    machine  see facts.py
    runs     each start of the stage: command, date, how it ended, seconds that it took
    states   clocks, temperature and power before each round
    rows     id, group, title, what was asked; status; samples, one a round; why there are no or fewer samples

Status: `done`, `partial` (fewer samples than rounds), `failed`, `not run`.
"""

import datetime
import json
import os
import pathlib
import sys

import facts

SCHEMA = 1
DEADLINE = "not run: deadline"


class Store:
    def __init__(self, path, data, render):
        self.path, self.data, self._render = pathlib.Path(path), data, render
        self._rows = {r["id"]: r for r in data["rows"]}

    @classmethod
    def open(cls, stage, head, out, earlier, render, today=None):
        """Goes on with the newest file of the same stage, engine, device and driver in `out`, else in `earlier`; else
        begins one. `render`: the data -> Markdown."""
        today = today or datetime.date.today().isoformat()
        out = pathlib.Path(out)
        out.mkdir(parents=True, exist_ok=True)
        name = f"{facts.slug(head['key']['device'])}-{stage}"
        for folder in (out, pathlib.Path(earlier)):
            for path in sorted(folder.glob(f"*-{name}*.json"), reverse=True):
                data = _read(path)
                if data and data.get("stage") == stage and data.get("key") == head["key"]:
                    data["machine"] = {**data["machine"], **head["machine"]}
                    return cls(out / path.name, data, render)
        path = out / f"{today}-{name}.json"
        if path.exists():  # of another engine or driver, on the same day
            tail = "".join(c for c in head["key"]["engine"].removeprefix("sha256 ") if c.isalnum())[:8]
            path = out / f"{today}-{name}-{tail}.json"
        data = {"schema": SCHEMA, "stage": stage, **head, "runs": [], "states": [], "rows": []}
        return cls(path, data, render)

    def begin(self, command, rows, rounds):
        """A new run; rows that no earlier run had are added as not run, those with fewer samples are not done."""
        now = datetime.datetime.now().isoformat(timespec="seconds")
        self.data["runs"].append({"started": now, "command": command, "ended": "killed"})
        for row in rows:
            known = self._rows.get(row.id)
            if known is None:
                known = {"id": row.id, "status": "not run", "why": "not reached", "samples": []}
                self.data["rows"].append(known)
                self._rows[row.id] = known
            if known["status"] == "done" and len(known["samples"]) < rounds:
                known.update(status="partial", why="not reached")
            known.update(group=row.group, title=row.title, **row.asked)
        self.save()

    def row(self, row_id):
        return self._rows[row_id]

    def find(self, row_id):
        """A row of this or an earlier run, or None."""
        return self._rows.get(row_id)

    def add(self, row_id, sample, rounds):
        row = self._rows[row_id]
        row["samples"].append({**sample, "run": len(self.data["runs"])})
        done = len(row["samples"]) >= rounds
        row.update(status="done" if done else "partial", why="" if done else "not reached")
        self.save()

    def fail(self, row_id, why, **more):
        self._rows[row_id].update(status="failed", why=why, **more)
        self.save()

    def cut(self, row_id):
        """No time is left for a row, or for the rest of its rounds."""
        row = self._rows[row_id]
        row.update(status="partial" if row["samples"] else "not run", why=DEADLINE)
        self.save()

    def state(self, **more):
        self.data["states"].append({**facts.state(), **more, "run": len(self.data["runs"])})

    def machine(self, found):
        """Facts that only a running row tells, such as PyTorch's."""
        self.data["machine"].update(found)

    def end(self, how, wall_s):
        now = datetime.datetime.now().isoformat(timespec="seconds")
        self.data["runs"][-1].update(ended=how, at=now, wall_s=round(wall_s, 3))
        self.save()

    def save(self):
        replace(self.path, json.dumps(self.data, indent=1) + "\n")
        try:
            text = self._render(self.data)
        except Exception as e:  # a table that can't be made must not cost the measurements; it can be made later
            print(f"run: no Markdown for {self.path.name}: {type(e).__name__}: {e}", file=sys.stderr)
        else:
            replace(self.path.with_suffix(".md"), text)


def _read(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        print(f"run: {path}: left alone, cannot be read: {e}", file=sys.stderr)
        return None


def replace(path, text):
    """So that a kill at any moment leaves the old content or the new."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
