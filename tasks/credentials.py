"""Secrets by name: from the environment or a Prefect Secret block, never from a file of the repository.

    OPENAI_API_KEY, env:OPENAI_API_KEY      a variable of the environment
    block:openai-key                        a Secret block of the Prefect server that PREFECT_API_URL names

`params.yaml` holds such a name. What it stands for goes to the one request that needs it, and into no message, log,
artefact or tag; `without` cleans what others said.
"""

import os
import re

from tasks.settings import SettingsError

__all__ = ["MARK", "secret", "without"]

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
BLOCK = re.compile(r"[a-z0-9][a-z0-9-]*")
MARK = "***"


def secret(name: str) -> str | None:
    """The secret of a name; None where it is not set, since a server of one's own may ask for none.

    Raises:
        SettingsError: not a name; it is not repeated, for it may be the secret itself. Or there is no such block.
    """
    kind, _, rest = str(name).rpartition(":")
    if kind in ("", "env") and VARIABLE.fullmatch(rest):
        return os.environ.get(rest) or None
    if kind == "block" and BLOCK.fullmatch(rest):
        return _block(rest)
    raise SettingsError(
        "a secret is named by a variable of the environment (OPENAI_API_KEY) or by block:NAME of a Prefect Secret; "
        "what stands there is neither. It is not shown here, for it may be the secret: then take it out and have it "
        "renewed"
    )


def without(text: str, *secrets: str | None) -> str:
    """A text of somebody else's without the secrets that it repeats.

    >>> without("Incorrect API key provided: sk-1234", "sk-1234", None)
    'Incorrect API key provided: ***'
    """
    for each in filter(None, secrets):
        text = text.replace(each, MARK)
    return text


def _block(name: str) -> str:
    from prefect.blocks.system import Secret
    from prefect.exceptions import PrefectException

    try:
        return str(Secret.load(name, _sync=True).get())
    except (ValueError, PrefectException, RuntimeError) as error:
        raise SettingsError(
            f"there is no Secret block {name!r} at PREFECT_API_URL ({type(error).__name__}); make it in Prefect's "
            f"pages under Blocks, or use a variable of the environment"
        ) from None
