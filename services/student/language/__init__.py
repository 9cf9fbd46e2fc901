"""Language students: losses, data, training, evaluation and the recipe that joins them."""

import services.torch_common  # noqa: F401  declares what transformers' import needs
