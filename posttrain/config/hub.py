"""Whether the Hugging Face Hub answers: asked once, because its clients retry for a minute before they give up."""

from __future__ import annotations

import functools
import urllib.error
import urllib.request


@functools.cache
def hub_reachable(timeout_seconds: float = 5.0) -> bool:
    """True where the hub (HF_ENDPOINT) answers at all; False offline (HF_HUB_OFFLINE too). Asked once a process."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
