"""The space of AttentiveNAS and AlphaNet (Wang et al. 2021, arXiv 2011.09011, table 6, and 2102.07954)."""

from ofa.bignas import BigNasSpace, Stage

SPACE = BigNasSpace(
    name="attentive_nas",
    resolutions=(192, 224, 256, 288),
    stem_widths=(16, 24),
    stem_stride=2,
    stages=(
        Stage((16, 24), depths=(1, 2), kernel_sizes=(3, 5), expand_ratios=(1,), stride=1, se=False),
        Stage((24, 32), depths=(3, 4, 5), kernel_sizes=(3, 5), expand_ratios=(4, 5, 6), stride=2, se=False),
        Stage((32, 40), depths=(3, 4, 5, 6), kernel_sizes=(3, 5), expand_ratios=(4, 5, 6), stride=2, se=True),
        Stage((64, 72), depths=(3, 4, 5, 6), kernel_sizes=(3, 5), expand_ratios=(4, 5, 6), stride=2, se=False),
        Stage((112, 120, 128), depths=(3, 4, 5, 6, 7, 8), kernel_sizes=(3, 5), expand_ratios=(4, 5, 6), stride=1, se=True),
        Stage((192, 200, 208, 216), depths=(3, 4, 5, 6, 7, 8), kernel_sizes=(3, 5), expand_ratios=(6,), stride=2, se=True),
        Stage((216, 224), depths=(1, 2), kernel_sizes=(3, 5), expand_ratios=(6,), stride=1, se=True),
    ),
    final_expand_ratio=6,
    feature_widths=(1792, 1984),
)
