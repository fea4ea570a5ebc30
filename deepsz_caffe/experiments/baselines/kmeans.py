"""One-dimensional k-means, as both baselines share weights.

Values are sorted once. In one dimension a cluster is then an interval, so one of Lloyd's steps
costs k binary searches instead of a pass over all values: exact, and fast on millions of weights.
"""

from __future__ import annotations

import numpy as np

from deepsz_caffe.errors import InputError


def kmeans(values: np.ndarray, k: int, iterations: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Cluster values by Lloyd's algorithm from centroids spread linearly over their range.

    Linear initialization keeps centroids for the few large weights, which matter most (Han 2016,
    section 3.2). A cluster that loses all its values keeps its centroid.

    Parameters
    ----------
    values
        Float array, any shape; not empty.
    k
        Number of clusters.
    iterations
        Most steps; it stops earlier when no value changes its cluster.

    Returns
    -------
    centroids
        float32, shape (k,), ascending.
    labels
        Index of each value's nearest centroid (of the smaller one where two are as near); uint16,
        shape of `values`.

    Raises
    ------
    InputError
        No values, or `k` outside 1 to 65,536.
    """
    if not values.size:
        raise InputError("there are no values to cluster")
    if not 1 <= k <= 1 << 16:
        raise InputError(f"the number of clusters must be between 1 and 65,536, not {k}")
    ordered = np.sort(values, axis=None).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centroids = np.linspace(ordered[0], ordered[-1], k)
    cuts = np.full(k + 1, -1)
    for _ in range(iterations):
        middle = (centroids[1:] + centroids[:-1]) / 2
        found = np.concatenate([[0], np.searchsorted(ordered, middle, "right"), [ordered.size]])
        if np.array_equal(found, cuts):
            break
        cuts = found
        size = np.diff(cuts)
        filled = size > 0
        centroids[filled] = np.diff(sums[cuts])[filled] / size[filled]
    result = centroids.astype(np.float32)
    middle = (result[1:].astype(np.float64) + result[:-1]) / 2
    return result, np.searchsorted(middle, values, "left").astype(np.uint16)
