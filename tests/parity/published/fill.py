"""Deterministic parameter fill and inputs for supernet parity fixtures (numpy only).

Rule (FILL_VERSION 1), per state_dict key, with rng = numpy.random.RandomState(crc32(key)):
  *num_batches_tracked            int64 zeros
  *_matrix  (kernel transform)    eye(n) + 0.02 * N(0,1)
  *running_mean                   0.1 * N(0,1)
  *running_var                    1 + 0.1 * |N(0,1)|
  1-D *.weight (norm scale)       1 + 0.1 * N(0,1)
      ... of keys containing "mobile_inverted_conv.point_linear" (AttentiveNAS only): times 0.25,
          which keeps its all-residual trunk well conditioned
  1-D *.bias                      0.1 * N(0,1)
  >=2-D weight                    N(0,1) * sqrt(2 / fan_in), fan_in = prod(shape[1:])
All N(0,1) are drawn in float64 with rng.standard_normal(shape) (C order) and then cast
to float32.  `key` is the canonical key, i.e. the one listed in keys_<net>.json.
Inputs: RandomState(crc32("input:<net>:<arch index>")).standard_normal((n,3,r,r)) -> float32.
Labels: RandomState(crc32("label:<net>:<arch index>")).randint(0, n_classes, n).
"""

import zlib

import numpy as np

FILL_VERSION = 1


def _rng(text):
    return np.random.RandomState(zlib.crc32(text.encode("utf-8")) & 0xFFFFFFFF)


def fill_tensor(key, shape):
    shape = tuple(int(s) for s in shape)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    z = _rng(key).standard_normal(shape)
    if key.endswith("_matrix"):
        z = np.eye(shape[0]) + 0.02 * z
    elif key.endswith("running_mean"):
        z = 0.1 * z
    elif key.endswith("running_var"):
        z = 1.0 + 0.1 * np.abs(z)
    elif len(shape) == 1 and key.endswith("weight"):
        z = 1.0 + 0.1 * z
        if "mobile_inverted_conv.point_linear" in key:
            z = 0.25 * z
    elif len(shape) == 1:
        z = 0.1 * z
    else:
        z = z * np.sqrt(2.0 / np.prod(shape[1:]))
    return np.ascontiguousarray(z, dtype=np.float32)


def fill_state(keys_and_shapes):
    """keys_and_shapes: iterable of (key, shape). Returns an ordered {key: ndarray}."""
    return {k: fill_tensor(k, s) for k, s in keys_and_shapes}


def make_input(net, index, resolution, batch=2):
    shape = (batch, 3, resolution, resolution)
    return _rng(f"input:{net}:{index}").standard_normal(shape).astype(np.float32)


def make_labels(net, index, n_classes=1000, batch=2):
    return _rng(f"label:{net}:{index}").randint(0, n_classes, size=batch).astype(np.int64)
