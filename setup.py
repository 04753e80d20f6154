"""Maps the top-level folder ``kernels/`` to the package ``fastdss.kernels``; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    packages=[
        "fastdss",
        "fastdss.chat",
        "fastdss.console",
        "fastdss.corpus",
        "fastdss.demo",
        "fastdss.guards",
        "fastdss.integrations",
        "fastdss.kernels",
        "fastdss.loss",
        "fastdss.models",
        "fastdss.pages",
        "fastdss.prefix",
        "fastdss.score_report",
        "fastdss.star",
        "fastdss.train",
        "fastdss.train.run",
        "fastdss.upstream",
    ],
    package_dir={"fastdss": "fastdss", "fastdss.kernels": "kernels"},
    package_data={
        "fastdss": ["py.typed"],
        "fastdss.guards": ["tiny_guard/*"],
        "fastdss.score_report": ["*.css", "*.js"],
    },
)
