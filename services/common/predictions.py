"""What a classifier's logits are worth beside labels, item by item. Pure numpy, so that student
and gateway measure alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 15
Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def probabilities_of(logits: npt.NDArray[np.floating], *, multi_label: bool) -> Doubles:
    """Softmax of logits [n, K], of several labels the sigmoid of each; float64."""
    wide = logits.astype(np.float64)
    if multi_label:
        return np.asarray(np.exp(-np.logaddexp(0.0, -wide)), np.float64)
    shifted = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float64)


@dataclass(frozen=True)
class Predictions:
    """Logits [n, K] float64 of n items with labels [n, K] bool."""

    logits: Doubles
    hot: Mask
    multi_label: bool

    @property
    def correct(self) -> Doubles:
        """1 for a right label, else 0 [n]; of several labels the share that is right."""
        if self.multi_label:
            right: Doubles = ((self.logits > 0) == self.hot).mean(axis=1)
            return right
        return np.asarray(self.logits.argmax(axis=1) == self.hot.argmax(axis=1), np.float64)

    @property
    def negative_log_likelihood(self) -> Doubles:
        """Of the labels [n], in nats; of several labels the sum."""
        if self.multi_label:
            signs = np.where(self.hot, -1.0, 1.0)
            return np.asarray(np.logaddexp(0.0, signs * self.logits).sum(axis=1), np.float64)
        highest = self.logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(self.logits - highest).sum(axis=1)) + highest[:, 0]
        return np.asarray(log_sum - self.logits[self.hot], np.float64)

    def agreement(self, logits: Doubles) -> Doubles:
        """1 where other logits [n, K] decide alike, else 0 [n]; of several labels the share."""
        if self.multi_label:
            same: Doubles = ((self.logits > 0) == (logits > 0)).mean(axis=1)
            return same
        return np.asarray(self.logits.argmax(axis=1) == logits.argmax(axis=1), np.float64)

    def confidences(self) -> tuple[Doubles, Doubles]:
        """How sure each decision is, and whether it is right: [n, 1], of several labels [n, K]
        the probability of each and whether the item has it."""
        sure = probabilities_of(self.logits, multi_label=self.multi_label)
        if self.multi_label:
            return sure, self.hot.astype(np.float64)
        return sure.max(axis=1)[:, None], self.correct[:, None]


def calibration_gaps(sure: Doubles, right: Doubles) -> Doubles:
    """How much more often right than sure an item's decisions are, [n, BINS] by how sure they are;
    `sure` and `right` are [n, m].

    The expected calibration error of items is the sum over bins of the absolute sums, over n m.
    """
    items, decisions = sure.shape
    bins = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)
    places = (np.arange(items)[:, None] * BINS + bins).ravel()
    gaps = np.bincount(places, (right - sure).ravel(), minlength=items * BINS)
    return np.asarray(gaps.reshape(items, BINS) / decisions, np.float64)
