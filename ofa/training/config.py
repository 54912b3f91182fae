"""How to train: every setting that the weights depend on, checked when it is made and written beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ofa.errors import OfaError

RECIPES = ("sandwich", "progressive", "single_path", "attentive")
CHOICES = {
    "recipe": RECIPES,
    "schedule": ("cosine", "exponential", "linear"),
    "optimizer": ("sgd", "adamw"),
    "distillation": ("soft_ce", "kl", "alpha", "none"),
    "prefer": ("best", "worst"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
}
RANGES: dict[str, tuple[float, float]] = {  # least and largest legal value
    "epochs": (1, math.inf),
    "batch_size": (2, math.inf),
    "lr": (0, math.inf),
    "lr_floor": (0, 1),
    "warmup": (0, 1),
    "weight_decay": (0, math.inf),
    "clip_norm": (0, math.inf),
    "label_smoothing": (0, 0.99),
    "dropout": (0, 0.99),
    "drop_connect": (0, 0.99),
    "drop_path": (0, 0.99),
    "auxiliary": (0, math.inf),
    "cutout": (0, 4096),
    "num_random": (1, 64),
    "num_candidates": (1, 1_000),
    "least_mmacs": (0, math.inf),
    "most_mmacs": (0, math.inf),
    "bin_mmacs": (1e-3, math.inf),
    "temperature": (1e-3, 1e3),
    "kd_ratio": (0, math.inf),
    "mixup": (0, math.inf),
    "cutmix": (0, math.inf),
    "crop_scale": (0.01, 1),
    "ema_decay": (0, 0.999999),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How to train; written to supernet/config.json. A resumed run must be given the same."""

    recipe: str = "sandwich"
    epochs: int = 30
    batch_size: int = 128  # images a step, over all processes
    lr: float = 0.1  # peak; of the first phase where a recipe has several
    schedule: str = "cosine"
    lr_floor: float = 0.0  # constant ending: the rate never falls below this share of its peak
    warmup: float = 0.05  # share of the steps over which the rate rises; progressive shrinking has its own
    optimizer: str = "sgd"  # SGD with Nesterov momentum 0.9, or AdamW
    weight_decay: float = 1e-4  # on weights of convolutions and linear layers, not on BatchNorm and biases
    clip_norm: float = 5.0  # of the gradient summed over a step's lessons; 0 = no clipping
    label_smoothing: float = 0.1  # of what labels teach
    dropout: float = 0.0  # before the classifier; in sandwich and attentive of the largest network only
    drop_connect: float = 0.0  # of residual branches in the last two stages, likewise
    drop_path: float = 0.0  # of a cell's operations, identities excepted: what the probability rises to over training
    auxiliary: float = 0.0  # weight of the loss of a second classifier two thirds into a network of cells; 0 = none
    cutout: int = 0  # side of a square of each image that is left out, px of the network's input; 0 = none
    num_random: int = 2  # random subnets a step, besides the largest and the smallest
    distillation: str = "soft_ce"  # how a subnet learns from its teacher; "none": from the labels, like the largest
    temperature: float = 1.0  # of both sides of the distillation
    kd_ratio: float = 1.0  # weight of an external teacher's loss, or progressive shrinking's, beside that of the labels
    num_candidates: int = 50  # attentive: subnets to choose one from
    prefer: str = "worst"  # attentive: the candidate predicted best (BestUp) or worst (WorstUp)
    least_mmacs: float = 0.0  # single_path: millions of multiply-adds from which on networks are drawn evenly
    most_mmacs: float = 0.0  # and up to which; 0 = all choices evenly, whatever the network takes
    bin_mmacs: float = 10.0  # width of the bins between them, each drawn equally often
    skip_teacher: bool = False  # progressive: the initial weights are a trained largest network already
    mixup: float = 0.0  # parameter of the Beta distribution; 0 = off
    cutmix: float = 0.0  # likewise
    crop_scale: float = 1.0  # smallest share of the area that a random crop keeps; 1 = shifts of up to an eighth instead
    ema_decay: float = 0.0  # of the moving average of weights that is used after training; 0 = off
    precision: str = "auto"  # auto: fp32 on a processor, bf16 on a GPU that has it (docs/benchmarks.md)
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise OfaError(f"{field.name} is {value!r}, expected a value of type {kind.__name__}, such as {field.default!r}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise OfaError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(choices)}")
        for name, (least, largest) in RANGES.items():
            value = getattr(self, name)
            if not math.isfinite(value) or not least <= value <= largest:
                limit = f"of at least {least}" if largest == math.inf else f"from {least} to {largest}"
                raise OfaError(f"{name} is {value!r}, expected a number {limit}")
        if self.mixup and self.cutmix:
            raise OfaError("mixup and cutmix cannot both be on; set one of them to 0")
        if (self.least_mmacs or self.most_mmacs) and self.least_mmacs >= self.most_mmacs:
            raise OfaError(
                f"least_mmacs is {self.least_mmacs!r}, expected less than most_mmacs = {self.most_mmacs!r}; both 0 for no limits"
            )

    def without_effect(self, *, taught: bool) -> list[str]:
        """Name the settings that were changed but that this recipe does not look at; `taught`: an external teacher is given."""
        random, progressive = self.recipe in ("sandwich", "attentive"), self.recipe == "progressive"
        looked_at = {
            "warmup": not progressive,
            "num_random": random,
            "num_candidates": self.recipe == "attentive",
            "prefer": self.recipe == "attentive",
            "least_mmacs": self.recipe == "single_path",
            "most_mmacs": self.recipe == "single_path",
            "bin_mmacs": self.recipe == "single_path" and self.most_mmacs > 0,
            "skip_teacher": progressive,
            "kd_ratio": progressive or taught,
            "temperature": self.distillation != "none" and (random or progressive or taught),
        }
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default and not looked_at.get(f.name, True)]
