"""Many variables at once: how they go together, and the plane on which points in many dimensions lie widest apart.

Nothing here is drawn by chance: the same numbers give the same answer.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["PrincipalComponents", "cluster_order", "correlations", "principal_components"]

Floats = NDArray[np.float64]

ALIKE = 1e-12
"""Variance, as a share of the mean square, below which values count as equal."""


class PrincipalComponents(NamedTuple):
    """Points on their principal components."""

    scores: Floats
    """One row per point, one column per component, the widest first."""
    explained: tuple[float, ...]
    """Share of the variance that each component holds, 0 to 1."""


def principal_components(points: Floats, components: int = 2) -> PrincipalComponents | None:
    """Principal component analysis of points, one per row, about their mean.

    Each component points to where its score farthest from 0 is positive, so that its sign is fixed, too. Components
    that the points do not reach have scores of 0. None for points that are all the same.
    """
    if len(points) == 0:
        return None
    centred = points - points.mean(axis=0)
    # Of the two products the smaller one: both have the same eigenvalues.
    wide = centred.shape[0] <= centred.shape[1]
    values, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    values, vectors = values[::-1].clip(min=0.0), vectors[:, ::-1]
    total = float((centred * centred).sum())
    if total <= ALIKE * float((points * points).sum()):
        return None
    kept = min(components, len(values))
    scores = np.zeros((len(points), components))
    scores[:, :kept] = vectors[:, :kept] * np.sqrt(values[:kept]) if wide else centred @ vectors[:, :kept]
    for column in scores.T:
        column *= np.sign(column[np.argmax(np.abs(column))]) or 1.0
    explained = [float(value) / total for value in values[:kept]] + [0.0] * (components - kept)
    return PrincipalComponents(scores, tuple(explained))


def correlations(values: Floats) -> Floats:
    """Pearson correlation of every two columns, each over the rows in which both have a value (NaN: none).

    NaN where there are fewer than three such rows, or where one of the two does not vary in them.
    """
    known = np.isfinite(values)
    mask = known.astype(np.float64)
    held = np.where(known, values, 0.0)
    # About the mean, so that sums of squares lose no digits to it.
    about = np.where(known, held - held.sum(axis=0) / mask.sum(axis=0).clip(min=1.0), 0.0)
    n = mask.T @ mask
    with np.errstate(invalid="ignore", divide="ignore"):
        sums, squares = about.T @ mask, (about * about).T @ mask
        shared = about.T @ about - sums * sums.T / n
        spread = squares - sums * sums / n
        spread = np.where(spread > ALIKE * squares, spread, np.nan)
        found: Floats = shared / np.sqrt(spread * spread.T)
    return np.where(n >= 3, found.clip(-1.0, 1.0), np.nan)


def cluster_order(correlation: Floats) -> list[int]:
    """The variables in the order in which average-linkage clustering puts them side by side.

    The distance of two is 1 − r, of what has no correlation 1. A cluster is turned so that its two alike ends meet.
    """
    distance = 1 - np.nan_to_num(correlation, nan=0.0)
    clusters = [[place] for place in range(len(distance))]
    while len(clusters) > 1:
        _, first, second = min(
            (float(distance[np.ix_(one, other)].mean()), i, j)
            for i, one in enumerate(clusters)
            for j, other in enumerate(clusters[:i])
        )
        one, other = clusters[second], clusters[first]
        turns = [(a, b) for a in (one, one[::-1]) for b in (other, other[::-1])]
        merged = min(turns, key=lambda ends: float(distance[ends[0][-1], ends[1][0]]))
        clusters[second] = [*merged[0], *merged[1]]
        del clusters[first]
    return clusters[0] if clusters else []
