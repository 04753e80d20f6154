"""Maps the top-level folder ``kernels/`` to the package ``fastdss.kernels``; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    packages=["fastdss", "fastdss.demo", "fastdss.kernels"],
    package_dir={"fastdss": "fastdss", "fastdss.demo": "fastdss/demo", "fastdss.kernels": "kernels"},
    package_data={"fastdss": ["py.typed", "tiny_guard/*"]},
)
