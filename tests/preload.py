"""What the programs of tests import: done once, in the process that they are forked from."""

import scipy.stats  # noqa: F401
import torch  # noqa: F401
from diffusers import DiTPipeline  # noqa: F401

import evaluation.driver  # noqa: F401
import experiments.backends.digits.backend
import experiments.backends.digits.pipeline
import experiments.backends.meta_backend
import experiments.plans.execute
import experiments.plans.make
import experiments.reports.sweep  # noqa: F401
import tests.conftest  # noqa: F401  threads and offline switches
