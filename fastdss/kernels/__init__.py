"""Makes ``fastdss.kernels`` importable from a source tree, by pointing it at the top-level ``kernels/`` folder.

Neither the wheel nor the sdist contains this file; they install ``kernels/`` itself as ``fastdss/kernels``. That folder
has no ``__init__.py``, so that it can never shadow Hugging Face's package ``kernels``.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "kernels")]
