"""Published networks by name: counts as published, rows by hand, another input size, training and export by name."""

import pytest
import torch

from deploy.device import get_device
from deploy.emit import emit
from deploy.fold import fold
from deploy.parity import relative_error
from deploy.runtimes import open_session
from latency.cost import CountCost
from ofa.errors import OfaError
from ofa.find_arch import find_arch, list_networks
from ofa.run_dir import Run
from ofa.space import InvalidArchError
from ofa.spaces import get_space
from ofa.supernet import Supernet
from ofa.training.calibration import calibrate

# Parameters and MACs at 224 px, to the digits that were published: torchvision's counts for the first four (tests/parity compares
# with its networks); MnasNet-A1 and ProxylessNAS by their papers (tables 1 and 4) and by the counts that public
# implementations state.
PUBLISHED = {
    "mobilenet_v3_large": (5_483_032, 216.6),
    "mobilenet_v3_small": (2_542_856, 56.5),
    "mobilenet_v2": (3_504_872, 300.8),
    "mnasnet_b1": (4_383_312, 314.4),
    "mnasnet_a1": (3_887_038, 312),
    "proxyless_mobile": (4_080_512, 320),
    "proxyless_cpu": (4_361_648, 439),
    "proxyless_gpu": (7_119_848, 465),
}
networks = pytest.mark.parametrize("name", PUBLISHED)


@networks
def test_counts_are_the_published_ones(name):
    space = get_space(name)
    params, mmacs = PUBLISHED[name]
    assert CountCost("params", space)(space.largest) == params
    macs = CountCost("macs", space)(space.largest) / 1e6
    assert macs == pytest.approx(mmacs, abs=0.05 if isinstance(mmacs, float) else 0.5)
    assert space.size() == 1


def test_the_names_are_those_of_all_networks():
    assert set(list_networks()) == set(PUBLISHED)


def test_rows_by_hand():
    """MobileNetV3-Large's sixth row reads 40 channels of 28 px; MnasNet-A1's squeezes to a quarter of its input."""
    large = get_space("mobilenet_v3_large")
    spec = large.blocks(large.largest)["stage3_block2"]
    expected = {"in_channels": 40, "hidden_channels": 120, "out_channels": 40, "kernel_size": 5, "stride": 1, "se": True}
    assert {name: getattr(spec, name) for name in expected} == expected
    assert (spec.act, spec.shortcut, spec.resolution) == ("relu", "identity", 28)
    a1 = get_space("mnasnet_a1")
    squeezed = [spec.squeezed for spec in a1.blocks(a1.largest).values() if spec.se]
    assert squeezed == [6, 10, 10, 20, 28, 28, 40, 40]
    assert a1.blocks(a1.largest)["stage1_block0"].shortcut == "none"


@networks
def test_another_input_size(name):
    space = get_space(f"{name}:resolution=33", num_classes=7)
    assert space.name == f"{name}:resolution=33"
    assert space.resolution(space.largest) == 33
    assert get_space(space.name, num_classes=7) == space
    assert get_space(f"{name}:resolution=224").name == name
    net = Supernet(space).eval()
    images = torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        logits = net(images, space.largest)
        alone = net.extract(space.largest)
        assert torch.equal(alone(images), logits)
    assert CountCost("params", space)(space.largest) == sum(p.numel() for p in alone.parameters())
    assert logits.shape == (2, 7)


def test_the_emitted_file_computes_the_same():
    """MnasNet-A1, whose squeeze-and-excitation has a width of its own; the other kinds of block are in tests/parity."""
    space = get_space("mnasnet_a1:resolution=32", num_classes=7)
    torch.manual_seed(0)
    net = Supernet(space).extract(space.largest)
    calibrate(net, [torch.randn(16, 3, 32, 32)])
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = net(images).numpy()
    found = open_session(emit(space.blocks(space.largest), fold(net)), get_device("ort_cpu_1t")).run(images.numpy())
    assert relative_error(found, expected) < 1e-5


def test_numbers_that_it_does_not_have():
    with pytest.raises(OfaError, match="has no number 'cells'; it has: resolution"):
        get_space("mobilenet_v2:cells=3")
    for text in ("0", "small"):
        with pytest.raises(OfaError, match="expected pixels, such as 224"):
            get_space(f"mobilenet_v2:resolution={text}")


def test_a_network_is_an_architecture_by_name(tmp_path):
    space, arch = find_arch("mobilenet_v3_small:resolution=32")
    assert (space.name, arch) == ("mobilenet_v3_small:resolution=32", space.largest)
    assert find_arch("mobilenet_v3_small", resolution=32) == (space, arch)
    with pytest.raises(InvalidArchError, match="is a space of many networks"):
        find_arch("mbv3_tiny_image")
    with pytest.raises(InvalidArchError, match="leave --space out"):
        find_arch("mobilenet_v2", space="darts")
    with pytest.raises(OfaError, match="mobilenet_v3_small"):
        find_arch("mobilenet_v4")


def test_train_export_and_verify_by_name(cli, image_folder, tmp_path):
    run = tmp_path / "run"
    network = ("--arch", "mobilenet_v3_small:resolution=16", "--data", image_folder, "--out", run)
    made = cli("train", *network, "--epochs", "1", "--batch-size", "32", "--device", "cpu")
    assert made.returncode == 0, made.stderr
    assert Run(run).space.size() == 1
    out = tmp_path / "out"
    exported = cli("export", run / "arch.json", "-o", out, "--no-prove")
    assert exported.returncode == 0, exported.stderr
    verified = cli("verify", out)
    assert verified.returncode == 0, verified.stderr
