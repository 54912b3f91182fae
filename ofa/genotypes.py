"""Published cells by name, as their authors released them.

| name | from |
|---|---|
| darts_v1, darts_v2 | Liu et al. 2019 (DARTS, arXiv 1806.09055), first and second order |
| pc_darts, p_darts | Xu et al. 2020 (PC-DARTS, 1907.05737), Chen et al. 2019 (P-DARTS, 1904.12760), CIFAR-10 |
| cdarts | Yu et al. 2022 (Cyclic-DARTS, 2006.10724), CIFAR-10 |
| nasnet_a, amoebanet_a | Zoph et al. 2018 (1707.07012), Real et al. 2019 (1802.01548), as DARTS writes them |
| darts_rnn_v1, darts_rnn_v2, enas_rnn | recurrent: Liu et al. 2019, Pham et al. 2018 (ENAS, 1802.03268) |
"""

from __future__ import annotations

from ofa.genotype import Genotype, GenotypeError, RecurrentGenotype, parse_genotype

TEXTS = {
    "darts_v1": """Genotype(
        normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1),
            ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)],
        normal_concat=[2, 3, 4, 5],
        reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0),
            ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)],
        reduce_concat=[2, 3, 4, 5]
    )""",
    "darts_v2": """Genotype(
        normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
            ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)],
        normal_concat=[2, 3, 4, 5],
        reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1),
            ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)],
        reduce_concat=[2, 3, 4, 5]
    )""",
    "pc_darts": """Genotype(
        normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), ('dil_conv_3x3', 1),
            ('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)],
        normal_concat=[2, 3, 4, 5],
        reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_5x5', 2),
            ('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)],
        reduce_concat=[2, 3, 4, 5]
    )""",
    "p_darts": """Genotype(
        normal=[('skip_connect', 0), ('dil_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1),
            ('sep_conv_3x3', 1), ('sep_conv_3x3', 3), ('sep_conv_3x3', 0), ('dil_conv_5x5', 4)],
        normal_concat=[2, 3, 4, 5],
        reduce=[('avg_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_3x3', 0), ('dil_conv_5x5', 2),
            ('max_pool_3x3', 0), ('dil_conv_3x3', 1), ('dil_conv_3x3', 1), ('dil_conv_5x5', 3)],
        reduce_concat=[2, 3, 4, 5]
    )""",
    "cdarts": """Genotype(
        normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2),
            ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 2)],
        normal_concat=[2, 3, 4, 5],
        reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('dil_conv_5x5', 2), ('skip_connect', 0),
            ('sep_conv_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_3x3', 0), ('dil_conv_5x5', 2)],
        reduce_concat=[2, 3, 4, 5]
    )""",
    "nasnet_a": """Genotype(
        normal=[('sep_conv_5x5', 1), ('sep_conv_3x3', 0), ('sep_conv_5x5', 0), ('sep_conv_3x3', 0),
            ('avg_pool_3x3', 1), ('skip_connect', 0),
            ('avg_pool_3x3', 0), ('avg_pool_3x3', 0), ('sep_conv_3x3', 1), ('skip_connect', 1)],
        normal_concat=[2, 3, 4, 5, 6],
        reduce=[('sep_conv_5x5', 1), ('sep_conv_7x7', 0), ('max_pool_3x3', 1), ('sep_conv_7x7', 0),
            ('avg_pool_3x3', 1), ('sep_conv_5x5', 0),
            ('skip_connect', 3), ('avg_pool_3x3', 2), ('sep_conv_3x3', 2), ('max_pool_3x3', 1)],
        reduce_concat=[4, 5, 6]
    )""",
    "amoebanet_a": """Genotype(
        normal=[('avg_pool_3x3', 0), ('max_pool_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_5x5', 2),
            ('sep_conv_3x3', 0), ('avg_pool_3x3', 3),
            ('sep_conv_3x3', 1), ('skip_connect', 1), ('skip_connect', 0), ('avg_pool_3x3', 1)],
        normal_concat=[4, 5, 6],
        reduce=[('avg_pool_3x3', 0), ('sep_conv_3x3', 1), ('max_pool_3x3', 0), ('sep_conv_7x7', 2),
            ('sep_conv_7x7', 0), ('avg_pool_3x3', 1),
            ('max_pool_3x3', 0), ('max_pool_3x3', 1), ('conv_7x1_1x7', 0), ('sep_conv_3x3', 5)],
        reduce_concat=[3, 4, 6]
    )""",
    "darts_rnn_v1": """Genotype(
        recurrent=[('relu', 0), ('relu', 1), ('tanh', 2), ('relu', 3), ('relu', 4), ('identity', 1), ('relu', 5),
            ('relu', 1)],
        concat=[1, 2, 3, 4, 5, 6, 7, 8]
    )""",
    "darts_rnn_v2": """Genotype(
        recurrent=[('sigmoid', 0), ('relu', 1), ('relu', 1), ('identity', 1),
            ('tanh', 2), ('sigmoid', 5), ('tanh', 3), ('relu', 5)],
        concat=[1, 2, 3, 4, 5, 6, 7, 8]
    )""",
    "enas_rnn": """Genotype(
        recurrent=[('tanh', 0), ('tanh', 1), ('relu', 1), ('tanh', 3), ('tanh', 3), ('relu', 3),
            ('relu', 4), ('relu', 7), ('relu', 8), ('relu', 8), ('relu', 8)],
        concat=[2, 5, 6, 9, 10, 11]
    )""",
}


def list_genotypes() -> list[str]:
    """Return the names of all published cells."""
    return list(TEXTS)


def get_genotype(name: str) -> Genotype | RecurrentGenotype:
    """Return a published cell.

    Raises:
        GenotypeError: for an unknown name; it lists the known ones.
    """
    if name not in TEXTS:
        raise GenotypeError(f"no published cell is called {name!r}; known: {', '.join(TEXTS)}")
    return parse_genotype(TEXTS[name])
