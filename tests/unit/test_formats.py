"""Published files in all their spellings, what is refused and how, and architectures there and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ofa.errors import OfaError
from ofa.formats import attentive_nas, import_arch, import_checkpoint, mit_ofa
from ofa.formats.published import FormatError, canonical, canonical_names
from ofa.run_dir import Run, RunError
from ofa.space import InvalidArchError
from ofa.spaces import get_space, list_spaces
from ofa.supernet import Supernet

TINY = "mbv3_tiny_image"
SPECIALIZED = Path(__file__).parents[2].parent / "shared" / "data" / "mit_ofa" / "specialized_nets.json"


def format_of(space):
    return attentive_nas if "feature.width" in space.column else mit_ofa


def random_net(space, seed=0):
    torch.manual_seed(seed)
    net = Supernet(get_space(space) if isinstance(space, str) else space)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
            if "running_var" in name:
                tensor.add_(0.5)
    return net.eval()


def published(net):
    """A supernet's state as the other projects would spell it, in the canonical way."""
    state = net.state_dict()
    found = {theirs: state[ours] for ours, theirs in canonical_names(net).items()}
    for key, tensor in found.items():
        if key.startswith("feature_mix_layer.conv.weight") and tensor.ndim == 2:
            found[key] = tensor[:, :, None, None]
    return found


def logits(net, seed=0):
    arch = net.space.largest
    images = torch.randn(2, 3, *[net.space.resolution(arch)] * 2, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return net(images, arch)


def elastic_spelling(key):
    for name in ("conv", "bn", "linear"):
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if key.endswith(f".{name}.{leaf}"):
                return f"{key.removesuffix(leaf)}{name}.{leaf}"
    return key


SPELLINGS = {
    "canonical": lambda key: key,
    "elastic": elastic_spelling,
    "distributed": lambda key: "module." + elastic_spelling(key),
    "old": lambda key: key.replace(".conv.", ".mobile_inverted_conv.", 1) if key.startswith("blocks.") else key,
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_loads(spelling):
    net = random_net(TINY)
    loaded = mit_ofa.load_supernet({spelling(key): tensor for key, tensor in published(net).items()}, TINY)
    assert torch.equal(logits(loaded), logits(net))


@pytest.mark.parametrize("kind", ["plain.pth", "wrapped.pt", "x.safetensors", "no_suffix_w1.0", "arrays"])
def test_every_container_loads(kind, tmp_path):
    net = random_net(TINY)
    state = {key: tensor.contiguous() for key, tensor in published(net).items()}
    source = tmp_path / kind
    if kind == "x.safetensors":
        save_file(state, source)
    elif kind == "arrays":
        source = {key: tensor.numpy() for key, tensor in state.items()}
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "wrapped.pt" else state, source)
    loaded = mit_ofa.load_supernet(source, TINY)
    assert torch.equal(logits(loaded), logits(net))
    assert not loaded.training


def test_loading_copies_and_leaves_the_source_alone():
    state = published(random_net(TINY))
    before = {key: tensor.clone() for key, tensor in state.items()}
    with torch.no_grad():
        for parameter in mit_ofa.load_supernet(state, TINY).parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in state.items())


def test_number_of_classes_and_type_come_from_the_checkpoint():
    net = random_net(get_space(TINY, num_classes=7))
    loaded = mit_ofa.load_supernet({key: t.double() if t.is_floating_point() else t for key, t in published(net).items()}, TINY)
    assert loaded.space.num_classes == 7
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_static_teacher_gives_identity_kernel_transforms():
    state = {key: tensor for key, tensor in published(random_net(TINY)).items() if not key.endswith("_matrix")}
    loaded = mit_ofa.load_supernet(state, TINY)
    matrices = [p for name, p in loaded.named_parameters() if "kernel_transforms" in name]
    assert matrices
    assert all(torch.equal(matrix, torch.eye(len(matrix))) for matrix in matrices)


@pytest.mark.parametrize("name", [TINY, "ofa_proxyless_w1_3", "ofa_resnet50d", "attentive_nas"])
def test_static_subnet_loads_by_its_architecture(name):
    space = get_space(name, num_classes=5)
    module = format_of(space)
    (arch,) = space.decode(space.sample(np.random.default_rng(0), 1))
    alone = random_net(space.restrict(arch))
    state = published(alone)
    blocks = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    assert blocks == {str(i) for i in range(len(blocks))}  # a static network counts its own blocks only
    arguments = (state, arch, name) if module is attentive_nas else (state, name, arch)
    subnet = module.load_subnet(*arguments)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(subnet(images), alone.extract(arch)(images))


def test_static_resnet_without_residual_stem_counts_its_stem_anew():
    space = get_space("ofa_resnet50d", num_classes=5)
    arch = space.arch(stem__depth=0)
    names = canonical_names(Supernet(space.restrict(arch), device="meta"))
    assert names["layers.stem_out.largest.conv.weight"] == "input_stem.1.conv.weight"
    names = canonical_names(Supernet(space, device="meta"))
    assert names["layers.stem_out.largest.conv.weight"] == "input_stem.2.conv.weight"


def test_attentive_nas_leftovers_are_ignored_and_others_are_not():
    state = published(Supernet(get_space("attentive_nas"), device="cpu"))
    extra = {
        "blocks.4.shortcut.conv.conv.weight": torch.zeros(32, 32, 1, 1),
        "first_conv.bn.bn_tracking.0.running_mean": torch.zeros(24),
    }
    attentive_nas.load_supernet({**state, **extra})
    with pytest.raises(FormatError, match=r"it has blocks\.4\.x, which is not expected"):
        attentive_nas.load_supernet({**state, "blocks.4.x": torch.zeros(1)})


def test_wrong_space_is_named_with_the_right_one():
    state = published(Supernet(get_space("ofa_mbv3_w1_2")))
    with pytest.raises(FormatError, match=r"does not fit ofa_mbv3_w1_0: .* has shape .*; it fits ofa_mbv3_w1_2"):
        mit_ofa.load_supernet(state, "ofa_mbv3_w1_0")
    assert mit_ofa.detect_space(state) == "ofa_mbv3_w1_2"
    with pytest.raises(FormatError, match="fits none of the known spaces"):
        attentive_nas.detect_space(state)


def test_wrong_checkpoints_are_refused_in_one_line(tmp_path):
    state = published(random_net(TINY))
    missing = {key: tensor for key, tensor in state.items() if key != "blocks.3.conv.point_linear.conv.weight"}
    some_matrices = {key: tensor for key, tensor in state.items() if key != "blocks.3.conv.depth_conv.conv.7to5_matrix"}
    for bad, message in (
        (missing, r"it has no blocks\.3\.conv\.point_linear\.conv\.weight"),
        (some_matrices, r"it has no blocks\.3\.conv\.depth_conv\.conv\.7to5_matrix"),
        ({**state, "x": torch.zeros(1)}, "it has x, which is not expected"),
        ({**state, "first_conv.conv.weight": torch.zeros(9, 3, 3, 3)}, r"has shape \(9, 3, 3, 3\), expected"),
        ({}, "expected a state_dict"),
        ({"epoch": 3}, "'epoch' is a int, expected a tensor"),
    ):
        with pytest.raises(FormatError, match=message) as error:
            mit_ofa.load_supernet(bad, TINY)
        assert "\n" not in str(error.value)
    (tmp_path / "garbage.pth").write_bytes(b"not a checkpoint")
    (tmp_path / "list.pth").unlink(missing_ok=True)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"w": Path("code")}, tmp_path / "code.pth")  # an object: reading it would run code
    (tmp_path / "garbage.safetensors").write_bytes(b"\0" * 100)
    for name in ("garbage.pth", "list.pth", "code.pth", "garbage.safetensors", "absent.pth"):
        with pytest.raises(FormatError, match=name) as error:
            mit_ofa.load_supernet(tmp_path / name, TINY)
        assert "\n" not in str(error.value)


def test_canonical_keys_of_both_projects():
    for key, expected in {
        "module.blocks.2.mobile_inverted_conv.depth_conv.conv.conv.weight": "blocks.2.conv.depth_conv.conv.weight",
        "blocks.1.conv.depth_conv.conv.5to3_matrix": "blocks.1.conv.depth_conv.conv.5to3_matrix",
        "module.last_conv.feature_mix_layer.conv.conv.weight": "feature_mix_layer.conv.weight",
        "classifier.linear.linear.bias": "classifier.linear.bias",
        "input_stem.1.conv.bn.bn.weight": "input_stem.1.conv.bn.weight",
    }.items():
        assert canonical(key) == canonical(expected) == expected


# -- architectures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_spaces())
def test_architectures_there_and_back(name):
    space = get_space(name)
    module = format_of(space)
    for arch in [space.largest, space.smallest, *space.decode(space.sample(np.random.default_rng(0), 20))]:
        config = json.loads(json.dumps(module.from_arch(space, arch)))
        assert module.to_arch(space, config, resolution=space.resolution(arch)) == arch
        if module is mit_ofa:
            config = json.loads(json.dumps(mit_ofa.to_net_config(space, arch)))
            found, back = mit_ofa.from_net_config(config, space, resolution=space.resolution(arch))
            assert found is space
            assert space.blocks(back) == space.blocks(arch)


def test_single_values_count_for_all_and_none_for_the_largest():
    space = get_space("ofa_mbv3_w1_0")
    assert mit_ofa.to_arch(space, {"ks": 7, "e": 6, "d": 4, "wid": None, "r": [224]}) == space.largest
    assert mit_ofa.to_arch(space, {}) == space.largest
    assert mit_ofa.to_arch(space, {"ks": 3, "e": 3, "d": 2, "image_size": 128}) == space.smallest
    space = get_space("ofa_resnet50d")
    assert mit_ofa.to_arch(space, {"d": 2, "e": 0.35, "w": 2}) == space.largest
    assert mit_ofa.to_arch(space, {"d": 0, "e": 0.2, "w": 0}, resolution=128) == space.smallest
    kept = mit_ofa.to_arch(space, {"d": [1, 2, 2, 2, 2]})  # only the most keeps the residual stem
    assert kept == space.arch(stem__depth=0)
    space = get_space("ofa_proxyless_w1_3")
    assert mit_ofa.to_arch(space, {"d": 4}) == space.largest  # the last stage has one block
    assert mit_ofa.from_arch(space, space.largest)["d"] == [4, 4, 4, 4, 4, 1]


def test_entries_of_blocks_that_do_not_stand_may_be_anything():
    space = get_space("ofa_mbv3_w1_0")
    shallow = {"ks": [3, 3, 0, 0] * 5, "e": [4, 4, 0, 0] * 5, "d": 2}
    blocks = space.blocks(mit_ofa.to_arch(space, shallow))
    assert sum(spec.kind == "mbconv" for spec in blocks.values()) == 11


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("ofa_mbv3_w1_0", {"ks": [3] * 19}, "'ks' has 19 entries, expected 20"),
        ("ofa_mbv3_w1_0", {"ks": 9}, "kernel_size = 9 is not one of: 3, 5, 7"),
        ("ofa_mbv3_w1_0", {"w": 1}, "unknown entry 'w'"),
        ("ofa_mbv3_w1_0", {"wid": 1}, "expected null"),
        ("ofa_mbv3_w1_0", {"d": 1}, "depth = 1 is not one of"),
        ("ofa_resnet50d", {"w": 3}, "expected an index of at most 2"),
        ("ofa_resnet50d", {"d": 3}, "depth = 5 is not one of"),
        ("ofa_resnet50d", {"ks": 3}, "unknown entry 'ks'"),
    ],
)
def test_wrong_architectures_are_refused(name, config, message):
    with pytest.raises(OfaError, match=message):
        mit_ofa.to_arch(get_space(name), config)


def test_families_are_not_confused():
    with pytest.raises(FormatError, match="not a space of MIT's families"):
        mit_ofa.to_arch(get_space("attentive_nas"), {})
    with pytest.raises(FormatError, match="not a space of AttentiveNAS's family"):
        attentive_nas.to_arch(get_space(TINY), {})
    with pytest.raises(InvalidArchError):
        attentive_nas.to_arch(get_space("attentive_nas"), {"resolution": 200})


def test_net_config_names_its_space_and_what_differs():
    space = get_space("ofa_mbv3_w1_2")
    config = mit_ofa.to_net_config(space, space.smallest)
    found, arch = mit_ofa.from_net_config(config, resolution=128)
    assert (found.name, arch) == (space.name, space.smallest)
    config["blocks"][2]["conv"]["act_func"] = "h_swish"
    with pytest.raises(FormatError, match=r"not ofa_mbv3_w1_2: blocks\[2\] is .*h_swish.*, expected .*relu"):
        mit_ofa.from_net_config(config, space)
    with pytest.raises(FormatError, match="fits none of MIT's spaces"):
        mit_ofa.from_net_config(config)
    for broken in ({"blocks": 3}, {"blocks": [], "first_conv": {}}, {"blocks": [{}], "input_stem": []}):
        with pytest.raises(FormatError):
            mit_ofa.from_net_config(broken)


@pytest.mark.skipif(not SPECIALIZED.exists(), reason="../shared/data is not here: MIT's published networks")
def test_published_specialised_networks_are_understood():
    for net in json.loads(SPECIALIZED.read_text()):
        mobilenet = net["net"] == "MobileNetV3"
        act = "h_swish" if mobilenet else "relu6"

        def conv(inputs, outputs, stride=1, kernel=1, act=act):
            return {
                "name": "ConvLayer",
                "in_channels": inputs,
                "out_channels": outputs,
                "kernel_size": kernel,
                "stride": stride,
                "act_func": act,
            }

        blocks = []
        for b in net["blocks"]:
            layer = {"name": "MBInvertedConvLayer", "expand_ratio": b["e"], "mid_channels": b["mid"], "use_se": b["se"]}
            layer |= conv(b["i"], b["o"], b["s"], b["k"], b["act"]) | {"name": "MBInvertedConvLayer"}
            blocks.append({"name": "MobileInvertedResidualBlock", "mobile_inverted_conv": layer, "shortcut": None})
        width, head = net["blocks"][-1]["o"], list(net["head"].values())
        config = {"name": net["net"], "first_conv": conv(3, net["stem"], 2, 3), "blocks": blocks}
        config |= {name: conv(a, b) for name, a, b in zip(net["head"], [width, *head], head, strict=False)}
        space, arch = mit_ofa.from_net_config(config)  # some are of 236 px, more than the supernet was trained at
        specs = [spec for spec in space.blocks(arch).values() if spec.kind == "mbconv"]
        assert [s.hidden_channels for s in specs[1:]] == [b["mid"] for b in net["blocks"][1:]]
        assert [(s.shortcut == "identity") for s in specs] == [b["skip"] for b in net["blocks"]]


# -- import ---------------------------------------------------------------------------------------------------------


def test_imported_run_serves_search_and_export(tmp_path):
    from deploy.export import export_subnet
    from search.accuracy import SupernetAccuracy

    net = random_net(TINY)
    torch.save(published(net), tmp_path / "mit.pth")
    run = import_checkpoint(tmp_path / "mit.pth", tmp_path / "run", format="mit_ofa", space=TINY, data="digits")
    assert torch.equal(logits(run.load_supernet()), logits(net))
    assert run.preprocess.mean == (0.485, 0.456, 0.406)
    (top1,) = SupernetAccuracy(run, tmp_path / "journal")([run.space.smallest])
    assert 0 <= top1 <= 1
    (tmp_path / "arch.json").write_text(json.dumps(run.space.to_json(run.space.smallest)))
    assert export_subnet(tmp_path / "arch.json", tmp_path / "out", run=run.path).path.exists()
    with pytest.raises(FormatError, match="is a run already"):
        import_checkpoint(tmp_path / "mit.pth", tmp_path / "run", format="mit_ofa", space=TINY)


def test_run_imported_without_images_says_so_where_they_are_needed(tmp_path):
    from search.accuracy import SupernetAccuracy

    torch.save(published(random_net(get_space(TINY, num_classes=3))), tmp_path / "mit.pth")
    import_checkpoint(tmp_path / "mit.pth", tmp_path / "run", format="mit_ofa", space=TINY)
    run = Run(tmp_path / "run")
    assert run.space.num_classes == 3
    assert run.load_supernet().space.num_classes == 3
    for use in (lambda: run.load_train_and_validation(), lambda: SupernetAccuracy(run, tmp_path / "j")([run.space.largest])):
        with pytest.raises(RunError, match=r"imported without images.*import it again with --data"):
            use()
    with pytest.raises(FormatError, match="digits: has 10 classes, the checkpoint 3"):
        import_checkpoint(tmp_path / "mit.pth", tmp_path / "other", format="mit_ofa", space=TINY, data="digits")
    assert not (tmp_path / "other").exists()


def test_import_on_the_command_line(tmp_path, cli):
    torch.save(published(random_net(TINY)), tmp_path / "mit.pth")
    done = cli("import", tmp_path / "mit.pth", "--format", "mit_ofa", "--space", TINY, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").record["imported"]["format"] == "mit_ofa"
    done = cli("import", tmp_path / "absent.json", "--format", "mit_ofa", "--out", tmp_path / "b")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "no such file" in done.stderr
    for format, message in (("x", "unknown format 'x'"), ("attentive_nas", "fits none of the known spaces")):
        with pytest.raises(FormatError, match=message):
            import_checkpoint(tmp_path / "mit.pth", tmp_path / "b", format=format)


def test_imported_architectures(tmp_path):
    space = get_space("ofa_resnet50d")
    (tmp_path / "dict.json").write_text(json.dumps({"d": 0, "e": 0.2, "w": 0}))
    written = import_arch(tmp_path / "dict.json", tmp_path / "small", format="mit_ofa", resolution=128)
    assert space.from_json(json.loads(written.read_text())) == space.smallest
    (tmp_path / "net.config").write_text(json.dumps(mit_ofa.to_net_config(space, space.largest)))
    written = import_arch(tmp_path / "net.config", tmp_path / "large.json", format="mit_ofa")
    assert space.from_json(json.loads(written.read_text())) == space.largest
    (tmp_path / "either.json").write_text(json.dumps({"ks": 3, "e": 3, "d": 2}))
    for name, arguments, message in (
        ("either.json", {}, "fits ofa_mbv3_w1_0 and ofa_mbv3_w1_2 and ofa_proxyless_w1_3; say which with --space"),
        ("dict.json", {"out": tmp_path / "large.json"}, "exists already"),
        ("dict.json", {"space": "attentive_nas"}, "not a space of MIT's families"),
    ):
        with pytest.raises(OfaError, match=message):
            import_arch(tmp_path / name, **{"out": tmp_path / "new", "format": "mit_ofa", **arguments})
    for content in ("[1]", "{", '"x"'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(FormatError, match=r"bad\.json"):
            import_arch(tmp_path / "bad.json", tmp_path / "new", format="mit_ofa")
