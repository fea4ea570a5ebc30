import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsz_caffe.errors import InputError
from deepsz_caffe.experiments.baselines.kmeans import kmeans


def plain_lloyd(values, k, iterations=300):
    """Lloyd's algorithm as written in a textbook: every value against every centroid."""
    values = values.astype(np.float64)
    centroids = np.linspace(values.min(), values.max(), k)
    labels = None
    for _ in range(iterations):
        found = np.abs(values[:, None] - centroids).argmin(axis=1)
        if labels is not None and np.array_equal(found, labels):
            break
        labels = found
        for cluster in range(k):
            if (labels == cluster).any():
                centroids[cluster] = values[labels == cluster].mean()
    return centroids, labels


def test_separate_groups_are_found_exactly():
    values = np.array([5.0, 1.0, 9.0, 1.0, 5.5, 9.5], np.float32)
    centroids, labels = kmeans(values, 3)
    np.testing.assert_array_equal(centroids, [1.0, 5.25, 9.25])
    np.testing.assert_array_equal(labels, [1, 0, 2, 0, 1, 2])


def test_one_cluster_is_the_mean_and_as_many_as_values_are_the_values():
    values = np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    assert kmeans(values, 1)[0] == 1.5
    centroids, labels = kmeans(values, 4)
    np.testing.assert_array_equal(centroids[labels], values)


def test_uniform_values_end_at_equal_cells():
    centroids, labels = kmeans(np.linspace(0, 1, 100_001, dtype=np.float32), 4)
    np.testing.assert_allclose(centroids, [0.125, 0.375, 0.625, 0.875], atol=1e-4)
    np.testing.assert_allclose(np.bincount(labels) / labels.size, 0.25, atol=1e-3)


def test_constant_values_and_empty_clusters():
    centroids, labels = kmeans(np.full(7, 0.5, np.float32), 3)
    np.testing.assert_array_equal(centroids[labels], np.full(7, 0.5, np.float32))


def test_same_as_plain_lloyd_on_weights():
    random = np.random.default_rng(1)
    values = random.standard_normal(3000).astype(np.float32)
    values = values[np.abs(values) > 0.8]
    ours, labels = kmeans(values, 15)
    plain, plain_labels = plain_lloyd(values, 15)
    np.testing.assert_allclose(ours, plain, rtol=1e-5)
    np.testing.assert_array_equal(labels, plain_labels)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60), st.integers(1, 12))
def test_every_value_has_its_nearest_centroid(values, k):
    values = np.array(values, np.float32)
    centroids, labels = kmeans(values, k)
    assert (np.diff(centroids) >= 0).all()
    distances = np.abs(values.astype(np.float64)[:, None] - centroids)
    assert (distances[np.arange(values.size), labels] == distances.min(axis=1)).all()


def test_wrong_use():
    with pytest.raises(InputError, match="no values"):
        kmeans(np.zeros(0, np.float32), 2)
    with pytest.raises(InputError, match="between 1 and"):
        kmeans(np.ones(3, np.float32), 0)
