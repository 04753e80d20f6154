"""Maps the top-level folder ``kernels/`` to the package ``fastdss.kernels``; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    packages=["fastdss", "fastdss.corpus", "fastdss.demo", "fastdss.kernels", "fastdss.score_report"],
    package_dir={"fastdss": "fastdss", "fastdss.kernels": "kernels"},
    package_data={"fastdss": ["py.typed", "tiny_guard/*"], "fastdss.score_report": ["*.css", "*.js"]},
)
