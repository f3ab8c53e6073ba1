"""Eight faked devices, for the tests that need a mesh, and quick compilation: most programs here run once."""

import os
from importlib.metadata import version

flags = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):  # an unknown flag would end the process, and later versions are not known to have it
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
