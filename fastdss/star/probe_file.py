"""A probe as a file: tensors, and the rest as JSON. The same probe gives the same bytes, and nothing is unpickled."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any

from fastdss.errors import UserError

from .course import Persistence
from .probe import Certificate, TrunkProbe
from .promise import Audit, Promise
from .ridge import Ridge

_log = logging.getLogger(__name__)
_TENSORS = ("mean", "scale", "dual", "seen", "inverse")
_KEY = "fastdss_probe"  # the only key of the metadata: safetensors would write several in an order that changes


def probe_bytes(probe: TrunkProbe) -> bytes:
    """The probe as safetensors, without the account of its audit."""
    from safetensors.torch import save

    ridge = probe.ridge
    rest = {
        "layers": probe.layers,
        "ridge": {name: getattr(ridge, name) for name in ("offset", "penalty", "spread")},
        "certificate": asdict(probe.certificate),
        "guard_name": probe.guard_name,
        "asked": dict(probe.asked),
        "audit_share": probe.audit_share,
        "seed": probe.seed,
        "shortcut": probe.shortcut,
        "persistence": asdict(probe.persistence),
        "weights": probe.weights,
    }
    tensors = {name: getattr(ridge, name).contiguous() for name in _TENSORS}
    found: bytes = save(tensors, metadata={_KEY: json.dumps(rest, sort_keys=True)})
    return found


def read_probe(content: bytes) -> TrunkProbe:
    """The probe that ``probe_bytes`` wrote; ``ValueError`` where ``content`` is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        length = int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8 : 8 + length])
        rest = json.loads(header["__metadata__"][_KEY])
        tensors = load(content)
        parts: dict[str, Any] = {name: tensors[name] for name in _TENSORS}
        ridge = Ridge(**parts, **rest.pop("ridge"))
        certificate = rest.pop("certificate")
        promise = Promise(**certificate.pop("promise"))
        layers, persistence = tuple(rest.pop("layers")), Persistence(**rest.pop("persistence"))
        certified = Certificate(promise, **certificate)
        if not rest.get("weights"):
            _log.warning(
                "an older probe, which does not say of which weights it is: use it for the guard it was fitted on"
            )
        return TrunkProbe(layers, ridge, certified, Audit(promise), persistence=persistence, **rest)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"expected a probe that fastdss wrote, got another or a damaged file ({error})") from None
