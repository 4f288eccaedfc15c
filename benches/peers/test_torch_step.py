"""The PyTorch side: the networks' counts and the masks. Skipped where torch is not installed."""

import importlib.util
import unittest

HAVE_TORCH = importlib.util.find_spec("torch") is not None
if HAVE_TORCH:
    import torch

    import names
    import nets
    import torch_step

# Published counts, 10 and 1,000 classes: parameters, those that masks act on, tensors of these.
COUNTS = {
    "resnet20": (272_474, 270_896, 22),
    "resnet56": (855_770, 851_504, 58),
    "vgg11": (9_228_362, 9_222_848, 9),
    "vgg16": (14_724_042, 14_715_584, 14),
    "vgg19": (20_035_018, 20_024_000, 17),
    "resnet18": (11_689_512, 11_678_912, 21),
    "resnet34": (21_797_672, 21_779_648, 37),
    "resnet50": (25_557_032, 25_502_912, 54),
    "resnet101": (44_549_160, 44_442_816, 105),
    "wrn101-2": (126_886_696, 126_747_840, 105),
    "wrn50-2": (68_883_240, 68_814_016, 54),
}
GFLOPS = {"resnet20": 2 * 0.04081, "vgg16": 2 * 0.31320, "resnet18": 3.628, "resnet50": 8.178}  # 2 a MAC, one image


@unittest.skipUnless(HAVE_TORCH, "torch is not installed")
class Nets(unittest.TestCase):
    def test_counts_are_the_papers(self):
        for name, counts in COUNTS.items():
            with self.subTest(name), torch.device("meta"):
                net, _, _ = nets.build(name)
                weights = [m.weight for m in torch_step.maskable(net)]
                got = sum(p.numel() for p in net.parameters()), sum(w.numel() for w in weights), len(weights)
                self.assertEqual(got, counts)

    def test_work_is_the_papers(self):
        for name, want in GFLOPS.items():
            with self.subTest(name), torch.device("meta"):
                net, image, classes = nets.build(name)
                flops = []
                for m in torch_step.maskable(net):
                    m.register_forward_hook(
                        lambda m, _, y: flops.append(2 * y.numel() // m.weight.shape[0] * m.weight.numel())
                    )
                y = net.eval()(torch.empty(1, *image))
                self.assertEqual(tuple(y.shape), (1, classes))
                self.assertLess(abs(sum(flops) / 1e9 / want - 1), 1e-3)

    def test_every_name_has_its_network(self):
        with torch.device("meta"):
            for name in [*names.IMAGENET, *names.VGG, "resnet8", "resnet110"]:
                with self.subTest(name):
                    self.assertEqual(names.default_batch(name) == 16, nets.build(name)[1] == (3, 224, 224))
            self.assertEqual(len(torch_step.maskable(nets.build("cifar-resnet50")[0])), 52)
            with self.assertRaisesRegex(ValueError, "wanted resnetN"):
                nets.build("resnet21")


@unittest.skipUnless(HAVE_TORCH, "torch is not installed")
class Masks(unittest.TestCase):
    def test_counts_and_the_weight_that_would_keep_a_layer_dense(self):
        net, _, _ = nets.build("resnet20")
        net = net.to(memory_format=torch.channels_last)
        exact = torch_step.masks(net, "uniform", 0.8, below=0)
        fewer = torch_step.masks(net, "uniform", 0.8, below=0.2)
        for module, a, b in zip(torch_step.maskable(net), exact, fewer):
            size = module.weight.numel()
            self.assertEqual(a.shape, module.weight.shape)
            self.assertEqual(a.stride(), module.weight.stride())
            self.assertEqual(a.sum().item(), round(0.2 * size))
            self.assertTrue(0 <= a.sum().item() - b.sum().item() <= 1)
            self.assertLess(b.mean().item(), 0.2)
        torch_step.multiply(net, exact)
        for module, mask in zip(torch_step.maskable(net), exact):
            self.assertTrue(((module.weight == 0) == (mask == 0)).all())


if __name__ == "__main__":
    unittest.main()
