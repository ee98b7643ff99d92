"""What a server tells a device that said hello."""

from __future__ import annotations

from multispin.core.server import ServerCore
from multispin.core.tenant import LOCAL, Tenant
from multispin.wire.frames import PROTOCOL_VERSION, Welcome


def welcome(core: ServerCore, tenant: Tenant = LOCAL, *, pads: bool = False) -> Welcome:
    return Welcome(
        version=PROTOCOL_VERSION,
        target=core.info.target,
        fingerprint=core.info.fingerprint,
        vocabulary_size=core.vocabulary.size,
        end_ids=core.info.end_ids,
        context_length=core.info.context_length,
        max_draft_length=tenant.limits.draft_length(core.limits.max_draft_length),
        reproducible=core.info.reproducible,
        mode=core.limits.batch.mode,
        pads=pads,
    )
