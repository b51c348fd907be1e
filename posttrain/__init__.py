"""posttrain post-trains language models: every algorithm is a sum of terms of one policy-gradient estimator."""

__version__ = "0.1.0"
