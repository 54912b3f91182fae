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
from ofa.spaces import get_space, list_elastic_spaces
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
    subnet = module.load_subnet(state, name, arch)
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
    with pytest.raises(FormatError, match=r"does not fit one network of ofa_mbv3_w1_2: .*; it fits ofa_mbv3_w1_2"):
        mit_ofa.load_subnet(state, "ofa_mbv3_w1_2", get_space("ofa_mbv3_w1_2").smallest)
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


def test_files_of_anything_but_tensors_are_refused_in_one_plain_line(tmp_path):
    (tmp_path / "text.pth").write_text("hello world\n")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "garbage.pth").write_bytes(b"\x80\x81" * 50)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")  # reading it would run code
    torch.save({"w": Path("code")}, tmp_path / "code.pth")
    torch.save({"w": torch.zeros(99)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:400])
    (tmp_path / "garbage.safetensors").write_bytes(b"\0" * 100)
    (tmp_path / "folder.pth").mkdir()
    for name, message in (
        ("text.pth", "not a file of tensors: it is text"),
        ("empty.pth", "not a file of tensors: it is empty"),
        ("garbage.pth", "not a file of tensors: "),
        ("list.pth", "holds a list, expected a state_dict"),
        ("module.pth", r"not a file of tensors: it holds a torch.nn.modules.linear.Linear.*torch\.save\(net\.state_dict\(\)"),
        ("code.pth", "not a file of tensors: it holds a .*Path"),
        ("cut.pth", "not a file of tensors: "),
        ("garbage.safetensors", "not a file of tensors: "),
        ("folder.pth", "cannot be read"),
        ("absent.pth", "no such file"),
    ):
        with pytest.raises(FormatError, match=message) as error:
            mit_ofa.load_supernet(tmp_path / name, TINY)
        assert str(error.value).startswith(str(tmp_path / name))
        assert str(error.value).isprintable()  # no line breaks, no colours
        assert len(str(error.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t.to_sparse(), "is sparse_coo, expected a dense tensor"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is quantised, expected floating-point numbers"),
        (lambda t: t.to(torch.complex64), "is complex64, expected floating-point numbers"),
        (lambda t: t.to(torch.int8), "is int8, expected floating-point numbers"),
        (lambda t: t.to(torch.bool), "is bool, expected floating-point numbers"),
        (lambda t: t.to("meta"), "has a shape but no values"),
        (lambda t: t / 0, "NaN or infinite"),
        (lambda t: t.double() + 1e300, "NaN or infinite"),  # in float32
        (lambda t: np.array([object()]), "is an array of object, expected floating-point numbers"),
        (lambda t: np.array(["a"]), "is an array of <U1, expected floating-point numbers"),
        (lambda t: t.numpy().astype(complex), "is complex128, expected floating-point numbers"),
    ],
)
def test_tensors_that_are_no_weights_are_refused_in_one_line(make, message):
    key = "first_conv.conv.weight"
    state = published(random_net(TINY))
    with pytest.raises(FormatError, match=f"'{key}' .*{message}") as error:
        mit_ofa.load_supernet({**state, key: make(state[key])}, TINY)
    assert "\n" not in str(error.value)


def test_arrays_of_any_layout_and_byte_order_load():
    net = random_net(TINY)
    arrays = {key: tensor.numpy() for key, tensor in published(net).items()}
    arrays = {key: a.astype(a.dtype.newbyteorder(">")) if a.ndim < 2 else a[::-1].copy()[::-1] for key, a in arrays.items()}
    assert torch.equal(logits(mit_ofa.load_supernet(arrays, TINY)), logits(net))


def test_counters_may_be_of_any_real_type_and_a_classifier_has_a_class():
    state = published(random_net(TINY))
    counters = {key: tensor.float() for key, tensor in state.items() if key.endswith("num_batches_tracked")}
    mit_ofa.load_supernet({**state, **counters}, TINY)
    name = "classifier.linear"
    none = {f"{name}.weight": state[f"{name}.weight"][:0], f"{name}.bias": state[f"{name}.bias"][:0]}
    with pytest.raises(FormatError, match=r"'classifier\.linear\.weight' has 0 classes, expected at least 1"):
        mit_ofa.load_supernet({**state, **none}, TINY)


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


@pytest.mark.parametrize("name", [name for name in list_elastic_spaces() if any(slot.stage for slot in get_space(name).slots)])
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
        ("ofa_mbv3_w1_0", {"d": ["a"] * 5}, "'d' has 'a', expected a number or null"),
        ("ofa_mbv3_w1_0", {"d": [[2], [2], [2], [2], [2]]}, r"'d' has \[2\], expected a number or null"),
        ("ofa_mbv3_w1_0", {"d": {"a": 1}}, "'d' has {'a': 1}, expected a number or null"),
        ("ofa_mbv3_w1_0", {"ks": [True] * 20}, "'ks' has True, expected a number or null"),
        ("ofa_mbv3_w1_0", {"r": "x"}, "resolution = 'x' is not one of"),
        ("ofa_resnet50d", {"d": ["x"] * 5, "w": 1}, "'d' has 'x', expected a number or null"),
        ("ofa_resnet50d", {"w": "x"}, "'w' has 'x', expected a number or null"),
        ("ofa_resnet50d", {"w": 1.0}, "'w' of stem.mid.width is 1.0, expected an index of at most 2"),
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


def test_broken_net_configs_are_refused_in_one_line():
    space = get_space("ofa_resnet50d")
    good = mit_ofa.to_net_config(space, space.largest)
    for broken in (
        {"blocks": 3},
        {"blocks": [], "first_conv": {}},
        {"blocks": [{}], "input_stem": []},
        {"blocks": [], "input_stem": []},
        {**good, "input_stem": []},
        {**good, "blocks": []},
        *({**good, "blocks": [{**good["blocks"][0], key: "x"}]} for key in good["blocks"][0] if key != "groups"),
        *({**good, "blocks": [{**good["blocks"][0], key: [1]}]} for key in ("expand_ratio", "mid_channels", "out_channels")),
        {**good, "blocks": [{**good["blocks"][0], "mid_channels": None, "expand_ratio": float("nan")}]},
        {**good, "input_stem": [{**good["input_stem"][0], "out_channels": None}] * 3},
    ):
        for where in (None, space, "ofa_mbv3_w1_0"):
            with pytest.raises(FormatError, match=r"net config|^not ofa_") as error:
                mit_ofa.from_net_config(broken, where)
            assert "\n" not in str(error.value)


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


def test_run_imported_without_images_can_be_profiled(tmp_path, cli):
    from latency.table import LatencyTable

    torch.save(published(random_net(get_space(TINY, num_classes=3))), tmp_path / "mit.pth")
    run = import_checkpoint(tmp_path / "mit.pth", tmp_path / "run", format="mit_ofa", space=TINY)
    done = cli("profile", run.path, "--rounds", "3")
    assert done.returncode == 0, done.stderr
    assert LatencyTable.load(run.latency_path("ort_cpu_1t"), run.space).predict(run.space.encode([run.space.largest]))[0] > 0


@pytest.mark.parametrize(("data", "flip"), [("digits", False), ("folder", True)])
def test_imported_run_mirrors_images_as_training_would(data, flip, tmp_path, image_folder):
    torch.save(published(random_net(get_space(TINY, num_classes=10 if data == "digits" else 2))), tmp_path / "mit.pth")
    data = data if data == "digits" else str(image_folder)
    run = import_checkpoint(tmp_path / "mit.pth", tmp_path / "run", format="mit_ofa", space=TINY, data=data)
    assert run.data.flip is flip


@pytest.mark.parametrize("kind", ["net.config", "dict.json", "arch.json", "ArchConfig"])
def test_checkpoint_of_one_network_becomes_a_run_of_it(kind, tmp_path):
    from deploy.export import export_subnet

    space = get_space(TINY, num_classes=10)
    arch = space.decode(space.sample(np.random.default_rng(0), 1))[0]
    alone = random_net(space.restrict(arch))
    torch.save(published(alone), tmp_path / "init")
    contents = {
        "net.config": lambda: mit_ofa.to_net_config(space, arch),
        "dict.json": lambda: mit_ofa.from_arch(space, arch),
        "arch.json": lambda: space.to_json(arch),
    }
    given, resolution = tmp_path / kind, space.resolution(arch)
    if kind == "ArchConfig":
        given, resolution = arch, None
    else:
        given.write_text(json.dumps(contents[kind]()))
        resolution = None if kind == "arch.json" else resolution
    run = import_checkpoint(
        tmp_path / "init",
        tmp_path / "run",
        format="mit_ofa",
        space=None if kind in ("arch.json", "ArchConfig") else TINY,
        data="digits",
        arch=given,
        resolution=resolution,
    )
    run = Run(run.path)
    assert run.space.size() == 1
    assert run.space.blocks(run.space.largest) == space.blocks(arch)
    assert torch.equal(logits(run.load_supernet()), logits(alone))
    assert export_subnet(run.path / "arch.json", tmp_path / "out").arch == run.space.largest


def test_checkpoint_and_architecture_must_belong_together(tmp_path):
    space = get_space(TINY, num_classes=10)
    torch.save(published(random_net(space)), tmp_path / "whole.pth")
    torch.save(published(random_net(space.restrict(space.smallest))), tmp_path / "small.pth")
    (tmp_path / "large.json").write_text(json.dumps(space.to_json(space.largest)))
    (tmp_path / "small.json").write_text(json.dumps(space.to_json(space.smallest)))
    arguments = {"format": "mit_ofa", "space": TINY}
    for weights, arch, message in (
        ("small.pth", tmp_path / "large.json", f"does not fit one network of {TINY}: .* has shape"),
        ("whole.pth", tmp_path / "small.json", f"does not fit one network of {TINY}: .*"),
        ("small.pth", tmp_path / "absent.json", "no such file"),
    ):
        with pytest.raises(FormatError, match=message):
            import_checkpoint(tmp_path / weights, tmp_path / "run", arch=arch, **arguments)
    with pytest.raises(FormatError, match="resolution is given, but no architecture"):
        import_checkpoint(tmp_path / "whole.pth", tmp_path / "run", resolution=16, **arguments)
    with pytest.raises(FormatError, match="says its resolution itself"):
        import_checkpoint(tmp_path / "small.pth", tmp_path / "run", arch=tmp_path / "small.json", resolution=16, **arguments)
    assert not (tmp_path / "run").exists()


def test_run_of_one_network_is_profiled_with_its_space(tmp_path):
    from latency.profile import ProfileConfig, profile_device
    from latency.table import LatencyTable

    space = get_space(TINY, num_classes=10)
    torch.save(published(random_net(space.restrict(space.smallest))), tmp_path / "small.pth")
    run = import_checkpoint(tmp_path / "small.pth", tmp_path / "run", format="mit_ofa", arch=space.smallest)
    profile_device(run, "ort_cpu_1t", config=ProfileConfig(rounds=3))
    table = LatencyTable.load(run.latency_path("ort_cpu_1t"), run.space)
    assert table(run.space.largest) > 0
    assert set(run.space.all_blocks) < set(table.entries)


def test_import_on_the_command_line(tmp_path, cli):
    torch.save(published(random_net(TINY)), tmp_path / "mit.pth")
    done = cli("import", tmp_path / "mit.pth", "--format", "mit_ofa", "--space", TINY, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").record["imported"]["format"] == "mit_ofa"
    done = cli("import", tmp_path / "absent.json", "--format", "mit_ofa", "--out", tmp_path / "b")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "no such file" in done.stderr
    space = get_space(TINY)
    torch.save(published(random_net(space.restrict(space.smallest))), tmp_path / "small.pth")
    (tmp_path / "net.config").write_text(json.dumps(mit_ofa.to_net_config(space, space.smallest)))
    one = ("import", tmp_path / "small.pth", "--format", "mit_ofa", "--space", TINY, "--out", tmp_path / "one")
    resolution = space.resolution(space.smallest)
    done = cli(*one, "--arch", tmp_path / "net.config", "--resolution", resolution)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "one").space.resolution(Run(tmp_path / "one").space.largest) == resolution
    for path, option, message in (
        ("mit.pth", ("--resolution", 16), "--resolution"),
        ("net.config", ("--data", "digits"), "--data"),
        ("net.config", ("--arch", tmp_path / "net.config"), "--arch"),
    ):
        done = cli("import", tmp_path / path, "--format", "mit_ofa", "--space", TINY, "--out", tmp_path / "c", *option)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert message in done.stderr
        assert not (tmp_path / "c").exists()
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
