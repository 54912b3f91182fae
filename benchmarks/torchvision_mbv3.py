"""torchvision's MobileNetV3-Large as blocks of ours: a network of somebody else that our emitter can write.

Source: Howard et al. 2019 (arXiv 1905.02244), table 1.
"""

from __future__ import annotations

from torch import nn
from torchvision.models import MobileNetV3

from ofa.block_spec import BlockSpec
from ofa.blocks import build_network
from ofa.slots import shrunk

BN_EPS = 1e-3
STEM, LAST, FEATURE, CLASSES = 16, 960, 1280, 1000  # channels
STAGES = (  # kernel size, hidden channels, output channels, squeeze-and-excitation, activation, stride
    (3, 16, 16, False, "relu", 1),
    (3, 64, 24, False, "relu", 2),
    (3, 72, 24, False, "relu", 1),
    (5, 72, 40, True, "relu", 2),
    (5, 120, 40, True, "relu", 1),
    (5, 120, 40, True, "relu", 1),
    (3, 240, 80, False, "h_swish", 2),
    (3, 200, 80, False, "h_swish", 1),
    (3, 184, 80, False, "h_swish", 1),
    (3, 184, 80, False, "h_swish", 1),
    (3, 480, 112, True, "h_swish", 1),
    (3, 672, 112, True, "h_swish", 1),
    (5, 672, 160, True, "h_swish", 2),
    (5, 960, 160, True, "h_swish", 1),
    (5, 960, 160, True, "h_swish", 1),
)


def large_blocks(resolution: int = 224) -> dict[str, BlockSpec]:
    """Return the blocks of mobilenet_v3_large for images of `resolution` pixels, in order."""
    blocks = {"stem": BlockSpec("conv", 3, STEM, resolution, kernel_size=3, stride=2, act="h_swish")}
    width, shrink = STEM, 2
    for number, (kernel_size, hidden, out, se, act, stride) in enumerate(STAGES, 1):
        blocks[f"block{number}"] = BlockSpec(
            "mbconv",
            width,
            out,
            shrunk(resolution, shrink),
            kernel_size=kernel_size,
            stride=stride,
            hidden_channels=hidden,
            act=act,
            se=se,
            shortcut="identity" if stride == 1 and width == out else "none",
        )
        width, shrink = out, shrink * stride
    side = shrunk(resolution, shrink)
    return blocks | {
        "final": BlockSpec("conv", width, LAST, side, act="h_swish"),
        "pool": BlockSpec("pool", LAST, LAST, side),
        "feature": BlockSpec("linear", LAST, FEATURE, 1, act="h_swish", bias=True),
        "classifier": BlockSpec("linear", FEATURE, CLASSES, 1, bias=True),
    }


def as_chain(net: MobileNetV3) -> nn.Sequential:
    """Return torchvision's network as a chain of our blocks with copies of its weights, in eval mode.

    Both hold their layers in the order in which they run, so that their tensors correspond one to one. What deploy.fold makes of
    the chain are torchvision's weights by our emitter's names.

    Raises:
        ValueError: if the network is another one.
    """
    chain = build_network(large_blocks(), bn_eps=BN_EPS)
    ours, theirs = chain.state_dict(), net.state_dict()
    shapes = [[tuple(tensor.shape) for tensor in state.values()] for state in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"not mobilenet_v3_large: {len(shapes[1])} tensors, expected {len(shapes[0])} of the same shapes")
    chain.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    return chain.eval()
