"""What pyproject.toml cannot say: the C extensions, one of which needs pkg-config to build.

All are optional: without a compiler or libfuse's headers aimfuse installs and runs; the kernel
falls back where it would have used fallocate, and writes and records are taken one by one.
"""

import os
import shlex
import subprocess

from setuptools import Extension, setup


def fuse_flags(kind: str) -> list[str]:
    """Return what pkg-config says about libfuse3, or nothing where it cannot say."""
    command = [os.environ.get("PKG_CONFIG", "pkg-config"), kind, "fuse3"]
    try:
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return shlex.split(output)


setup(
    ext_modules=[
        Extension(
            "aimfuse._fallocate",
            ["src/aimfuse/_fallocate.c"],
            extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", *fuse_flags("--cflags")],
            extra_link_args=fuse_flags("--libs") or ["-lfuse3"],
            optional=True,
        ),
        Extension(
            "aimfuse._scatter",
            ["src/aimfuse/_scatter.c"],
            extra_compile_args=["-std=gnu11", "-Wall", "-Wextra"],
            optional=True,
        ),
        Extension(
            "aimfuse._rows",
            ["src/aimfuse/_rows.c"],
            extra_compile_args=["-std=gnu11", "-Wall", "-Wextra"],
            optional=True,
        ),
    ]
)
