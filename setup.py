"""Maps the top-level folder ``kernels/`` to the package ``fastdss.kernels``; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fastdss", "fastdss.*"], exclude=["fastdss.kernels"]), "fastdss.kernels"],
    package_dir={"fastdss": "fastdss", "fastdss.kernels": "kernels"},
    package_data={
        "fastdss": ["py.typed"],
        "fastdss.guards": ["tiny_guard/*"],
        "fastdss.score_report": ["*.css", "*.js"],
    },
)
