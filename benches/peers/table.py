"""From the samples of all rounds to one table. Nothing here runs anything."""

import dataclasses
import statistics

HEADINGS = [
    "",
    "step ms: median",
    "min",
    "IQR of rounds",
    "/ PyTorch dense (min-max of rounds)",
    "memory, MB",
    "/ PyTorch dense",
]


@dataclasses.dataclass
class Row:
    """A row of figures, or of the reason why there are none (`failed`)."""

    name: str
    detail: str = ""
    failed: str = ""
    median_ms: float | None = None
    min_ms: float | None = None
    iqr_ms: float | None = None
    ratio: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    memory_bytes: float | None = None
    memory_ratio: float | None = None


def iqr(values):
    """Distance of the quartiles (inclusive); None for fewer than two values."""
    if len(values) < 2:
        return None
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def summarise(names, rounds, failures, rivals):
    """A row for each name. `rounds`: a dictionary name -> Sample for each finished round; `failures`: name -> reason.

    Ratios are median over rounds / median over rounds of the fastest rival, for memory of the first rival that has
    figures. Their spread is that of the ratios taken round by round. Returns the rows and the names of these two rivals
    (None where there is none). A name that failed has no figures, even if it had some in earlier rounds.
    """
    series = {n: [r[n] for r in rounds if n in r] for n in names if n not in failures}
    series = {n: s for n, s in series.items() if s and len(s) == len(rounds)}
    time = {n: [x.median_ms for x in s] for n, s in series.items()}
    memory = {
        n: statistics.median(x.memory_bytes for x in s)
        for n, s in series.items()
        if all(x.memory_bytes is not None for x in s)
    }
    rows = []
    fastest = min((n for n in rivals if n in time), key=lambda n: statistics.median(time[n]), default=None)
    base = next((n for n in rivals if n in memory), None)
    for n in names:
        if n not in series:
            rows.append(Row(n, failed=failures.get(n, "no answer")))
            continue
        row = Row(n, detail=series[n][-1].detail, median_ms=statistics.median(time[n]), iqr_ms=iqr(time[n]))
        row.min_ms = min(x.min_ms for x in series[n])
        if fastest:
            each = [a / b for a, b in zip(time[n], time[fastest])]
            row.ratio = row.median_ms / statistics.median(time[fastest])
            row.ratio_min, row.ratio_max = min(each), max(each)
        row.memory_bytes = memory.get(n)
        if base and n in memory:
            row.memory_ratio = memory[n] / memory[base]
        rows.append(row)
    return rows, fastest, base


def cells(row):
    name = f"{row.name} ({row.detail})" if row.detail else row.name
    if row.failed:
        return [name, row.failed] + [""] * (len(HEADINGS) - 2)
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f} ({row.ratio_min:.2f}-{row.ratio_max:.2f})"
    memory = "-" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.0f}"
    share = "-" if row.memory_ratio is None else f"{row.memory_ratio:.2f}"
    return [
        name,
        ms(row.median_ms),
        ms(row.min_ms),
        "-" if row.iqr_ms is None else ms(row.iqr_ms),
        ratio,
        memory,
        share,
    ]


def ms(value):
    """Three significant digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown(rows):
    lines = [HEADINGS, ["---"] + ["---:"] * (len(HEADINGS) - 1), *map(cells, rows)]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)


def plain(rows):
    """The same, aligned for a terminal; a failure's reason may run over the columns."""
    lines = [HEADINGS, *map(cells, rows)]
    measured = [HEADINGS] + [cells(r) for r in rows if not r.failed]
    widths = [max(len(line[i]) for line in (lines if i == 0 else measured)) for i in range(len(HEADINGS))]
    failed = {r.name for r in rows if r.failed}
    text = []
    for line in lines:
        if line[0] in failed:
            text.append(f"{line[0]:<{widths[0]}}  {line[1]}")
        else:
            text.append(
                "  ".join([f"{line[0]:<{widths[0]}}"] + [f"{c:>{w}}" for c, w in zip(line[1:], widths[1:])]).rstrip()
            )
    return "\n".join(text)
