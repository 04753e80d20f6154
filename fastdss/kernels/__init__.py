"""Source-tree stand-in: points ``fastdss.kernels`` at the top-level ``kernels/`` folder.

Neither the wheel nor the sdist contains this file; there ``kernels/`` itself is installed as ``fastdss/kernels``.
``kernels/`` has no ``__init__.py`` so that it can never shadow Hugging Face's package ``kernels``.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "kernels")]
