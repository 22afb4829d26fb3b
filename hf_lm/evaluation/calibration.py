"""Temperature scaling: confidences that mean what they say (Guo et al., arXiv 1706.04599)."""

import numpy as np

TEMPERATURES = (0.02, 50.0)  # where every held-out answer is right, none is small enough


def fit_temperature(logits: np.ndarray, true: np.ndarray) -> float:
    """The one temperature that minimises the negative log-likelihood of held-out labels, (rows,) class indices.

    `logits` are (rows, classes). No prediction changes, only how sure it is. The likelihood has one minimum in
    1 / temperature, which is found by halving the range of its slope's sign; it lies between 0.02 and 50.
    """
    logits = np.asarray(logits, np.float64)
    right = logits[np.arange(len(true)), true].mean()

    def slope(sharpness: float) -> float:
        return float((_softmax(sharpness * logits) * logits).sum(axis=-1).mean() - right)

    low, high = (1 / temperature for temperature in reversed(TEMPERATURES))
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / middle


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Class probabilities, (rows, classes)."""
    return _softmax(np.asarray(logits, np.float64) / temperature)


def negative_log_likelihood(logits: np.ndarray, true: np.ndarray, temperature: float = 1.0) -> float:
    """Nats per row of the labels (rows,)."""
    scaled = np.asarray(logits, np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    return float((np.log(np.exp(scaled).sum(axis=-1)) - scaled[np.arange(len(true)), true]).mean())


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)
