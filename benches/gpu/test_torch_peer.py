"""PyTorch's steps, on the CPU at a tiny size. Skipped where torch is not installed."""

import importlib.util
import sys
import unittest
import unittest.mock

import children
import worker
from variants import VARIANTS

HAVE_TORCH = importlib.util.find_spec("torch") is not None
if HAVE_TORCH:
    import torch

    import torch_peer

COUNTS = {  # parameters, and weights that masks act on; the engine's, and the papers'
    "resnet20": (272_474, 270_896),
    "resnet56": (855_770, 851_504),
    "resnet110": (1_730_714, 1_722_416),
    "vgg19": (20_035_018, 20_024_000),
    "resnet50": (25_557_032, 25_502_912),
    "wrn50-2": (68_883_240, 68_814_016),
}
QUESTION = {"model": "resnet8", "batch": 2, "seconds": 0, "method": "uniform", "sparsity": 0.9, "image": 8}


@unittest.skipUnless(HAVE_TORCH, "torch is not installed")
class Steps(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        torch.set_num_threads(1)

    def setUp(self):
        for name, value in (("BLOCK_MS", 1e-6), ("BLOCKS_LEAST", 2), ("STEPS_LEAST", 1)):
            patch = unittest.mock.patch.object(torch_peer, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        self.peers = torch_peer.Peers(torch.device("cpu"))

    def ask(self, variant, **more):
        return self.peers.answer({**QUESTION, "variant": variant, **more})

    def test_every_way_but_graphs_trains(self):
        for name, variant in VARIANTS.items():
            if variant.graphed or variant.compiled:
                continue
            with self.subTest(name):
                answer = self.ask(name)
                self.assertNotIn("error", answer)
                self.assertTrue(0 < answer["step_ms_min"] <= answer["step_ms_median"] <= answer["step_ms_max"])
                self.assertEqual((answer["blocks"], answer["steps"], answer["maskable"]), (2, 2, 77_360))
                self.assertLess(answer["loss"], 2.5)  # it learns its two images by heart

    def test_all_ways_take_the_same_step(self):
        def weights(name):
            network = torch_peer.Network({**QUESTION, "variant": name}, torch.device("cpu"))
            return torch.cat([p.detach().flatten() for p in network._net.parameters()])

        reference = weights("eager-f32")
        for name, most in (("eager-tf32", 1e-6), ("amp-fp16", 2e-2), ("amp-bf16", 5e-2)):
            with self.subTest(name):
                error = (weights(name) - reference).norm() / reference.norm()
                self.assertTrue(error <= most, error)

    def test_masked_weights_stay_zero(self):
        network = torch_peer.Network({**QUESTION, "variant": "masked-fp16"}, torch.device("cpu"))
        weights = [m.weight for m in torch_peer.torch_step.maskable(network._net)]
        kept = sum(int(w.count_nonzero()) for w in weights)
        self.assertEqual(kept, sum(round(w.numel() * 0.1) for w in weights))

    def test_an_error_is_an_answer_and_the_next_question_works(self):
        self.assertIn("wanted resnetN", self.ask("amp-bf16", model="resnet21")["error"])
        with unittest.mock.patch.object(
            torch_peer, "timed", side_effect=torch.OutOfMemoryError("CUDA out of memory. X")
        ):
            answer = self.ask("amp-bf16", keep=True)
        self.assertEqual(answer, {"error": "CUDA out of memory. X", "oom": True, "others": 0})
        self.assertIn("loss", self.ask("eager-f32"))
        with unittest.mock.patch.object(torch_peer.Network, "loss", return_value=float("nan")):
            self.assertIn("the loss is nan", self.ask("eager-f32")["error"])

    def test_kept_networks_go_on_and_give_way_to_the_next(self):
        first = self.ask("eager-f32", keep=True)["loss"]
        self.assertLess(self.ask("eager-f32", keep=True)["loss"], first)
        self.assertEqual(len(self.peers._kept), 1)
        self.ask("eager-f32", keep=True, model="resnet14")
        self.assertEqual([m for m, _, _ in self.peers._kept], ["resnet14"])

    def test_tf32_is_off_only_for_f32(self):
        for name, allowed in (("eager-f32", False), ("eager-tf32", True), ("amp-fp16", True)):
            torch_peer.allow_tf32(VARIANTS[name])
            self.assertIs(torch.backends.cudnn.allow_tf32, allowed)
            self.assertIs(torch.backends.cuda.matmul.allow_tf32, allowed)

    def test_networks_have_the_engines_counts(self):
        for name, counts in COUNTS.items():
            with self.subTest(name), torch.device("meta"):
                net, _, _ = torch_peer.nets.build(name)
                weights = torch_peer.torch_step.maskable(net)
                got = sum(p.numel() for p in net.parameters()), sum(m.weight.numel() for m in weights)
                self.assertEqual(got, counts)

    def test_as_a_process(self):
        peer = worker.for_torch(sys.executable, "cpu")
        self.addCleanup(peer.stop)
        answer = peer.ask({**QUESTION, "variant": "eager-f32"}, 300)
        self.assertEqual(answer["torch"]["torch"], torch.__version__)
        self.assertGreater(answer["wall_s"], 0)
        with self.assertRaisesRegex(children.Failed, "wanted resnetN"):
            peer.ask({**QUESTION, "variant": "eager-f32", "model": "resnet21"}, 300)


if __name__ == "__main__":
    unittest.main()
