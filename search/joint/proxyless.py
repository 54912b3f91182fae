"""Search the choices of a space by binary gates, from Python: the arguments, the images and the run directory.

Cai et al. 2019 (ProxylessNAS, arXiv 1812.00332); gate_search.py does the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from latency.table import LatencyTable
from ofa.artefacts import write_json
from ofa.counts import block_macs, block_params
from ofa.progress import say
from ofa.run_dir import Run
from ofa.spaces import get_space
from ofa.training.data import steps_per_epoch
from ofa.training.distributed import join
from ofa.training.evaluation import evaluate
from search.drawing import write_network
from search.joint.gate_latency import LatencyLoss
from search.joint.gate_search import GateSearch
from search.joint.gates_config import GatesConfig
from search.joint.images import open_images
from search.joint.objective import open_objective, open_table
from search.joint.open_choices import OpenChoices, open_choices
from search.joint.record import SearchError, open_or_create

DRAWING = "network.svg"


def search_gates(
    data: str,
    out: Path | str,
    *,
    config: GatesConfig | None = None,
    resume: bool = False,
    table: Path | None = None,
    reward: str | None = None,
    where: Sequence[str] = (),
    validation_fraction: float = 0.1,
    flip: bool | None = None,
    device: str = "auto",
) -> Run:
    """Search with gates and return the run directory, with arch.json and network.svg; the shared weights are in nas/.

    Args:
        data: name, directory or archive of images (ofa.training.data.load_images).
        out: run directory to make.
        resume: go on from the newest checkpoint in `out`, if there is one.
        table: latency table of a device, of the blocks to choose from; for the gradient with the config's target_ms, for
            reinforce with a limit on latency.
        reward: of reinforce: mnasnet_soft, mnasnet_hard or mobilenetv3 (search.joint.objective); None = accuracy alone.
        where: of reinforce: limits on costs, the targets of the reward.
        validation_fraction: share of the training images held out; what is found is measured on them once.
        flip: whether augmentation may mirror images; None = unless they are digits or clothes.
        device: "auto", "cpu", "cuda", ...
    Raises:
        OfaError: for a bad argument, a space whose choices are not between blocks of equal shape, unreadable data, an existing
            search (without `resume`), or a loss that is not finite.
    """
    config, out = config or GatesConfig(), Path(out)
    by_reward = config.update == "reinforce"
    _check_costs(config, table, reward, where)
    choices = open_choices(get_space(config.space), config.fix)
    side = max(int(option) for option in choices.sub_space.dimensions[choices.space.column["resolution"]].options)
    with join(device) as world:
        if world.size > 1:
            raise SearchError(f"{world.size} processes were started, but a search by gates runs in one; leave out torchrun")
        images = open_images(data, _Images.of(config, side), validation_fraction=validation_fraction, flip=flip)
        config.require_alpha_steps(steps_per_epoch(images.weights, config.batch_size))
        choices = open_choices(get_space(config.space, num_classes=len(images.source.classes)), config.fix)
        latency = LatencyLoss(choices, _open_table(table, choices), config) if table and not by_reward else None
        objective = open_objective(choices.sub_space, reward, where, table) if by_reward else None
        costs = {"reward": reward, "where": list(where), "objective_sha256": objective.fingerprint} if objective else {}
        settings = {**asdict(config), "fix": list(config.fix), **costs, "latency_sha256": latency and latency.fingerprint}
        run = open_or_create(out, choices.space, images.source, {"method": "gates", **settings}, resume=resume)
        search = GateSearch(run, config, choices, images, world.device, latency=latency, objective=objective)
        say(
            f"searching {len(choices.columns)} choices of {choices.space.name} ({choices.sub_space.size():.2g} networks) on "
            f"{images}; {config.epochs} epochs of {search.epoch_steps} steps"
        )
        search.load()
        search.run_steps()
        arch = choices.arch(search.gates.most_probable())
        top1, held_out = (
            evaluate(search.shared, [arch], images.weights, some, images.preprocess)[0]
            for some in (images.alphas, images.held_out)
        )
        blocks = choices.space.blocks(arch).values()
        say(
            f"found {sum(map(block_macs, blocks)) / 1e6:.3g} M MACs, {sum(map(block_params, blocks)) / 1e6:.3g} M parameters; "
            f"top-1 with the shared weights {top1:.4f} on the {len(images.alphas)} images that gates learnt "
            f"from, {held_out:.4f} on {len(images.held_out)} held out"
        )
        write_json(out / "arch.json", choices.space.to_json(arch), sealed=True)
        write_network(out / DRAWING, choices.space.blocks(arch))
    return run


@dataclass(frozen=True, slots=True)
class _Images:
    """What open_images asks of settings."""

    seed: int
    resolution: int
    batch_size: int
    max_images: int
    train_portion: float

    @classmethod
    def of(cls, config: GatesConfig, resolution: int) -> _Images:
        return cls(config.seed, resolution, config.batch_size, config.max_images, config.train_portion)


def _check_costs(config: GatesConfig, table: Path | None, reward: str | None, where: Sequence[str]) -> None:
    """Refuse costs that the way of updating would not look at, and a target without latencies or the other way round."""
    if config.update == "reinforce":
        if config.target_ms:
            raise SearchError(
                f"target_ms is {config.target_ms:g}, but reinforce takes a reward with limits: --reward and --where"
            )
        return
    if reward or where:
        raise SearchError("a reward is given, but alphas learn by gradients here: give --target-ms and --table, or reinforce")
    if bool(table) != bool(config.target_ms):
        given = (
            f"target_ms is {config.target_ms:g}, but there is no latency table" if config.target_ms else f"{table}: has no target"
        )
        raise SearchError(f"{given}; give --target-ms and --table, or neither")
    for name in ("latency_weight", "latency_loss"):
        if table is None and getattr(config, name) != getattr(GatesConfig(), name):
            raise SearchError(
                f"{name} is {getattr(config, name)}, but no latency matters to this search; give --target-ms and --table, or "
                "leave it out"
            )


def _open_table(path: Path, choices: OpenChoices) -> LatencyTable:
    found = open_table(path, choices.sub_space)
    if isinstance(found, LatencyTable):
        return found
    raise SearchError(f"{path}: predicts whole networks, expected times of blocks; measure a table: ofa profile")
