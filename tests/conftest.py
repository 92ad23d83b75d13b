"""Settings that must hold before any framework is imported, in every test process and in the processes that tests start."""

from __future__ import annotations

import os

from hypothesis import settings

_ENVIRONMENT = {
    # two test workers share two cores: more threads only fight
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    # what tests wait for is compilation, not what is compiled
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    # numbers that do not depend on the machine's accelerator
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    # no chatter, no network; the reference library needs PyTorch only
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "USE_TF": "0",
    "USE_FLAX": "0",
}
os.environ.update(_ENVIRONMENT)

# the same examples on every run, however slow the machine
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
