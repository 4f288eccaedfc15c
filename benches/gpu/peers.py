"""The stages `peers-small` and `peers-224`: this engine's training step and PyTorch's, in turn."""

import dataclasses

import children
import engine
import worker
from reused import interleave, ms, names
from schedule import Row
from variants import VARIANTS

SMALL = ("resnet20", "vgg19", "resnet56", "resnet110")
LARGE = ("resnet50", "wrn50-2")
BATCHES = {"peers-small": 128, "peers-224": 256}
SMALLEST_BATCH = 16
MASKED = ("uniform", 0.9)  # a masked network's time does not depend on its masks
ENGINE_LIMIT_S, CHECK_LIMIT_S, TORCH_LIMIT_S = 60, 180, 120
VENDOR_FACTOR = 1.5  # of a limit, for our dense network with the vendor's libraries beside it


@dataclasses.dataclass
class Options:
    python: str
    seconds: float = 0.5  # a PyTorch sample times steps for so long
    compile_s: float = 90
    check: bool = False
    full: bool = False
    device: str = "cuda"


class Bench:
    """The processes that stay, and what they have in common."""

    def __init__(self, binary, options, note):
        self.binary, self.options, self._note = binary, options, note
        self._workers, self._maskable, self._too_slow = {}, {}, {}

    def rows(self, stage, models, batch=None):
        found = []
        for model in models:
            size = batch or BATCHES[stage]
            ours = [self._engine_row(case, model, size) for case in engine.cases(full=self.options.full)]
            quick = [self._torch_row(n, model, size) for n, v in VARIANTS.items() if not v.compiled]
            slow = [self._torch_row(n, model, size) for n, v in VARIANTS.items() if v.compiled]
            # What has to compile comes last, so that the first round of all others does not wait for it.
            found += interleave(quick, ours) + slow
        return found

    def _engine_row(self, case, model, batch):
        dense = case.method == "dense"

        def run(limit_s, samples):
            options = dict(engine.LARGE if is_large(model) else engine.SMALL, check=self.options.check and not samples)
            measure = engine.step
            if dense:
                measure = engine.step_beside_vendor
                # What was not to be had before is not asked for again.
                options["missing"] = samples[-1].get("vendor_missing") if samples else None
            self._enter(model)
            sample = fitting(
                samples, batch, limit_s, lambda b, left: measure(self.binary, case, model, b, left, **options)
            )
            return self._same_network(model, sample)

        asked = {"kind": "engine", "model": model, "batch": batch, **dataclasses.asdict(case)}
        limit = (CHECK_LIMIT_S if self.options.check else ENGINE_LIMIT_S) * (VENDOR_FACTOR if dense else 1)
        return Row(f"{model} b{batch} engine {case.name()}", model, case.title(), asked, run, limit)

    def _torch_row(self, name, model, batch):
        variant = VARIANTS[name]

        def run(limit_s, samples):
            if variant.compiled and model in self._too_slow:
                raise children.Failed(self._too_slow[model])
            self._enter(model)
            try:
                sample = fitting(samples, batch, limit_s, lambda b, left: self._ask(name, model, b, left))
                return self._same_network(model, sample)
            except children.TimedOut:
                if variant.compiled and limit_s >= self.options.compile_s:
                    # The other compiled row would only spend as much time again.
                    self._too_slow[model] = f"torch.compile gave no answer in its limit of {limit_s:.0f} s"
                    raise children.Failed(self._too_slow[model]) from None
                raise

        asked = {"kind": "torch", "model": model, "batch": batch, "variant": name, **dataclasses.asdict(variant)}
        del asked["title"]
        limit = self.options.compile_s if variant.compiled else TORCH_LIMIT_S
        return Row(f"{model} b{batch} torch {name}", model, variant.title, asked, run, limit)

    def _enter(self, model):
        """Ends what another network left on the device."""
        for where in [w for w in self._workers if w.startswith("compile") and w != f"compile {model}"]:
            self._workers.pop(where).stop()

    def _ask(self, name, model, batch, limit_s):
        # torch.compile has a process of its own for each network: a hang or crash of it must not take the others along.
        where = f"compile {model}" if VARIANTS[name].compiled else "torch"
        if where not in self._workers:
            self._workers[where] = worker.for_torch(self.options.python, self.options.device)
        method, sparsity = MASKED
        question = {"model": model, "variant": name, "batch": batch, "seconds": self.options.seconds}
        question |= {"method": method, "sparsity": sparsity, "keep": not is_large(model)}
        deadline = children.Deadline(limit_s)
        try:
            answer = self._workers[where].ask(question, limit_s)
        except children.OutOfMemory as e:
            if not e.more["others"]:
                raise
            answer = self._workers[where].ask(question, deadline.left())  # a new process, alone on the device
        for key in ("variant", "model", "batch"):
            if answer.get(key) != question[key]:
                raise children.Failed(f"answered for {key} {answer.get(key)!r}, asked for {question[key]!r}")
        self._note(answer.pop("torch", {}))
        return {**answer, "said": f"{ms(answer['step_ms_median'])} ms"}

    def _same_network(self, model, sample):
        """All must train a network with as many weights that masks act on."""
        got = sample.get("maskable")
        want = self._maskable.setdefault(model, got)
        if got != want:
            raise children.Failed(f"has {got} weights that can be pruned, the others have {want}: not the same network")
        return sample


def fitting(samples, batch, limit_s, measure):
    """At the batch asked for, or at the first half of it that fits the device; later rounds at the same. All tries
    together take `limit_s`; `measure` is told what is left of it."""
    deadline = children.Deadline(limit_s)
    fixed = samples[-1]["batch"] if samples else None
    batch = fixed or batch
    while True:
        try:
            return measure(batch, deadline.left())
        except children.OutOfMemory:
            if fixed or batch // 2 < SMALLEST_BATCH:
                raise
            batch //= 2


def is_large(model):
    return model in names.IMAGENET
