"""Image classifiers that answer in other servers, by the Open Inference Protocol."""
