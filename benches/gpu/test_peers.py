"""What is measured beside what, and what happens where memory or time ends."""

import unittest
import unittest.mock

import children
import engine
import peers
from variants import VARIANTS


class Rows(unittest.TestCase):
    def test_peers_and_engine_take_turns_and_compiling_comes_last(self):
        rows = peers.Bench("se", peers.Options("python"), print).rows("peers-small", peers.SMALL)
        self.assertEqual(len(rows), 4 * (len(engine.cases()) + len(VARIANTS)))
        self.assertEqual(len({r.id for r in rows}), len(rows))
        first = [r.asked for r in rows if r.group == "resnet20"]
        self.assertEqual([a["kind"] for a in first[:8]], ["torch", "engine"] * 4)
        self.assertEqual([a["compiled"] for a in first[-3:] if a["kind"] == "torch"], [True, True])
        large = peers.Bench("se", peers.Options("python"), print).rows("peers-224", ("wrn50-2",), batch=32)
        self.assertEqual({r.asked["batch"] for r in large}, {32})
        self.assertEqual({r.asked["batch"] for r in rows}, {128})

    def test_every_precision_has_its_chain(self):
        for precision in engine.PRECISIONS:
            self.assertIn(f"graphed-{precision}", VARIANTS)
            self.assertIn("eager-tf32" if precision == "tf32" else f"amp-{precision}", VARIANTS)


class Fitting(unittest.TestCase):
    def fitting(self, most, samples=(), batch=256, limit=100):
        tried = []

        def measure(size, left):
            tried.append((size, left))
            if size > most:
                raise children.OutOfMemory("out of memory")
            return size

        with unittest.mock.patch("children.time.monotonic", side_effect=range(1000)):
            with unittest.mock.patch.object(children.Deadline.__init__, "__defaults__", (children.time.monotonic,)):
                try:
                    found = peers.fitting(samples, batch, limit, measure)
                except children.OutOfMemory:
                    found = None
        return found, tried

    def test_halves_within_one_limit(self):
        found, tried = self.fitting(most=70)
        self.assertEqual((found, tried), (64, [(256, 99), (128, 98), (64, 97)]))

    def test_ends_at_the_smallest_batch_and_keeps_that_of_earlier_rounds(self):
        found, tried = self.fitting(most=1, batch=64)
        self.assertEqual((found, [size for size, _ in tried]), (None, [64, 32, 16]))
        self.assertEqual(self.fitting(most=256, samples=[{"batch": 32}])[0], 32)
        found, tried = self.fitting(most=1, samples=[{"batch": 32}])
        self.assertEqual((found, len(tried)), (None, 1))

    def test_what_shares_the_device_is_ended_before_it_counts_as_full(self):
        bench = peers.Bench("se", peers.Options("python"), lambda _: None)
        answer = {"variant": "amp-fp16", "model": "resnet20", "batch": 128, "step_ms_median": 1.0}
        full = [children.OutOfMemory("full", others=2), answer]
        with unittest.mock.patch("peers.worker.for_torch") as made:
            made.return_value.ask.side_effect = full
            self.assertEqual(bench._ask("amp-fp16", "resnet20", 128, 10)["step_ms_median"], 1.0)
            made.return_value.ask.side_effect = [children.OutOfMemory("full", others=0), answer]
            with self.assertRaises(children.OutOfMemory):
                bench._ask("amp-fp16", "resnet20", 128, 10)

    def test_another_network_ends_the_compiled_one(self):
        bench = peers.Bench("se", peers.Options("python"), print)
        workers = {name: unittest.mock.Mock() for name in ("torch", "compile resnet20")}
        bench._workers.update(workers)
        bench._enter("resnet20")
        workers["compile resnet20"].stop.assert_not_called()
        bench._enter("vgg19")
        workers["compile resnet20"].stop.assert_called_once()
        self.assertEqual(list(bench._workers), ["torch"])


if __name__ == "__main__":
    unittest.main()
