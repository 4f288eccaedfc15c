"""What the figures depend on and the programs under test do not control: the machine, and who else uses it."""

import os

OTHERS_MAX = 0.2  # CPUs that other programs may use on average over a round before the table warns


def describe():
    """Processor, instruction sets that matter here, cores that this process may use."""
    facts = {"cpu": "unknown processor", "simd": "no AVX2", "cores": len(os.sched_getaffinity(0))}
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                facts["cpu"] = " ".join(value.split())
            elif key.strip() == "flags":
                flags = value.split()
                facts["simd"] = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else facts["simd"]
            elif not line.strip():
                break  # one processor is enough
    return facts


class Load:
    """Other programs' use of the processors since the last call of `lap`, beside the load average before and after.

    Busy time of all processors less that of this process and its finished children. Time that the host of a virtual
    machine took away counts as others'; what slows a machine without taking its time (memory traffic of a neighbour,
    clock rates) can't be seen from here.
    """

    def __init__(self, stat=None, own=None, average=os.getloadavg):
        self._stat = stat or _proc_stat
        self._own = own or _own_seconds
        self._average = average
        self._last = self._now()

    def lap(self):
        was, self._last = self._last, self._now()
        now = self._last
        wall = max(now["wall_s"] - was["wall_s"], 1e-3)
        others = max(0.0, (now["busy_s"] - was["busy_s"]) - (now["own_s"] - was["own_s"])) / wall
        return {"load_start": was["load"], "load_end": now["load"], "others_cpus": round(others, 3)}

    def _now(self):
        return {"load": round(self._average()[0], 2), "own_s": self._own(), **self._stat()}


def _proc_stat():
    with open("/proc/stat", encoding="ascii") as f:
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, f.readline().split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return {"busy_s": (user + nice + system + irq + softirq + steal) / tick, "wall_s": os.times().elapsed}


def _own_seconds():
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system
