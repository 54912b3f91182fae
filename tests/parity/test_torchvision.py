"""torchvision's mobile networks are networks of our blocks: equal counts, and equal logits with their weights."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from latency.cost import CountCost
from ofa.formats.importing import import_arch, import_checkpoint
from ofa.formats.published import FormatError
from ofa.formats.torchvision import detect_space, load_network, load_supernet
from ofa.spaces import get_space
from ofa.training.calibration import calibrate

NETWORKS = {
    "mobilenet_v3_large": torchvision.models.mobilenet_v3_large,
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "mnasnet_b1": torchvision.models.mnasnet1_0,
}
networks = pytest.mark.parametrize("name", NETWORKS)


def made(name, **settings):
    """A freshly initialised network with BatchNorm statistics that fit, so that logits are of common size."""
    torch.manual_seed(0)
    net = NETWORKS[name](**settings)
    calibrate(net, [torch.randn(8, 3, 64, 64) for _ in range(2)])
    return net.eval()


@networks
def test_logits_are_torchvisions(name):
    net = made(name, num_classes=12)
    space = get_space(f"{name}:resolution=64")
    ours = load_network(net.state_dict(), space)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = net(images), ours(images)
    assert found.shape == (2, 12)
    # the same operations on the same weights
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@networks
def test_counts_are_torchvisions(name):
    with torch.device("meta"):
        net = NETWORKS[name]().eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 224, 224))
    space = get_space(name)
    assert CountCost("params", space)(space.largest) == sum(p.numel() for p in net.parameters())
    assert CountCost("macs", space)(space.largest) == counter.get_total_flops() / 2


@networks
def test_a_file_in_any_order_is_recognised(name, tmp_path):
    state = made(name, num_classes=5).state_dict()
    kept = {key: state[key] for key in sorted(state, reverse=True) if not key.endswith("num_batches_tracked")}
    save_file(kept, tmp_path / "weights.safetensors")
    assert detect_space(tmp_path / "weights.safetensors") == name
    net = load_supernet(tmp_path / "weights.safetensors", name)
    assert net.space.num_classes == 5
    images = torch.randn(1, 3, 32, 32)
    small = get_space(f"{name}:resolution=32", num_classes=5)
    with torch.no_grad():
        expected = load_network(state, small)(images)
        assert torch.equal(load_network(kept, small)(images), expected)


def test_import_makes_a_run_of_the_one_network(tmp_path):
    torch.save(made("mobilenet_v3_small", num_classes=10).state_dict(), tmp_path / "small.pth")
    run = import_checkpoint(
        tmp_path / "small.pth", tmp_path / "run", format="torchvision", space="mobilenet_v3_small:resolution=32", data="digits"
    )
    assert run.space_name == "mobilenet_v3_small:resolution=32"
    assert run.space.size() == 1
    assert (tmp_path / "run" / "arch.json").exists()
    assert run.load_supernet().extract(run.space.largest)(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_what_does_not_fit(tmp_path):
    state = made("mobilenet_v3_small").state_dict()
    with pytest.raises(FormatError, match=r"they are of \d+ layers, expected \d+; they are of mobilenet_v3_small"):
        load_supernet(state, "mobilenet_v3_large")
    with pytest.raises(FormatError, match="is the weights of none"):
        detect_space(torchvision.models.squeezenet1_1().state_dict())
    wide = torchvision.models.mobilenet_v2(width_mult=0.5).state_dict()
    with pytest.raises(FormatError, match=r"features.0.0.weight has shape \(16, 3, 3, 3\), expected \(32, 3, 3, 3\)"):
        load_supernet(wide, "mobilenet_v2")
    lacking = {key: value for key, value in state.items() if key != "features.0.1.running_var"}
    with pytest.raises(FormatError, match=r"have no features\.0\.1\.running_var"):
        load_supernet(lacking, "mobilenet_v3_small")
    (tmp_path / "arch.json").write_text('{"ks": 3}')
    with pytest.raises(FormatError, match="this format has weights only"):
        import_arch(tmp_path / "arch.json", tmp_path / "out", format="torchvision")
