"""Build the one compiled module, mailfs.fuse._bridge, against the system's libfuse 3.

Everything else about the package is in pyproject.toml. This file exists because only pkg-config
knows where libfuse is.
"""

from __future__ import annotations

import shlex
import subprocess
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup


def pkg_config(*options: str) -> list[str]:
    """Ask pkg-config about fuse3; end the build with advice if it does not know."""
    try:
        answer = subprocess.run(
            ["pkg-config", *options, "fuse3 >= 3.7"], check=True, capture_output=True, text=True
        )
    except FileNotFoundError:
        sys.exit("mailfs needs pkg-config to be built (Debian: apt install pkg-config)")
    except subprocess.CalledProcessError as error:
        sys.exit(
            "mailfs needs libfuse 3.7 or newer with its headers to be built "
            f"(Debian: apt install libfuse3-dev)\n{error.stderr}"
        )
    return shlex.split(answer.stdout)


bridge = Extension(
    "mailfs.fuse._bridge",
    ["mailfs/fuse/_bridge.pyx"],
    depends=[  # and so part of a source distribution
        "mailfs/fuse/_bridge.pyx",
        "mailfs/fuse/_bridge.h",
        "mailfs/fuse/_libfuse.pxd",
        "mailfs/fuse/_operations.pxi",
    ],
    # Loaded with RTLD_GLOBAL, so nothing may be seen but the interposed symbols and the init.
    extra_compile_args=[*pkg_config("--cflags"), "-fvisibility=hidden"],
    extra_link_args=pkg_config("--libs"),
)

setup(ext_modules=cythonize([bridge], language_level=3))
