"""An address that speaks OpenAI's chat protocol: vLLM, llama.cpp, Ollama or a provider.

Source: the protocol of POST <address>/chat/completions.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tasks.credentials import secret, without
from tasks.settings import SettingsError
from tasks.writers._writer import Prompt, Writer, WriterRefused, prompt_hash

__all__ = ["Endpoint"]

LATER = {408, 409, 425, 429, 500, 502, 503, 504}  # another try may help
LONGEST = 60.0  # seconds between two tries


class Endpoint(Writer):
    """A model behind an address. A prompt that has no answer after all tries ends the run; the next one continues.

    Args:
        address: with http:// or https://, up to and with /v1.
        model: its name there; part of who wrote, so name the version.
        licence: of what it writes, under its terms.
        system: what is said before every prompt.
        new_tokens: of an answer, at most.
        temperature: 0 for the most likely words.
        seed: sent along; not every server heeds it.
        key_variable: name of the key, see tasks/credentials.py; it may be unset for a server of one's own.
        tries: of one prompt.
        wait: seconds before the second try, doubled for each further one, and what the server asks for if more.
        timeout: seconds of one try.
        parallel: prompts asked at once.
    """

    def __init__(
        self,
        address: str,
        model: str,
        licence: str,
        system: str = "",
        new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        key_variable: str = "OPENAI_API_KEY",
        tries: int = 4,
        wait: float = 1.0,
        timeout: float = 120.0,
        parallel: int = 4,
    ):
        if not str(address).startswith(("http://", "https://")):
            raise SettingsError(f"the address of an endpoint begins with http:// or https://; got {address!r}")
        if "@" in str(address).split("://", 1)[1].split("/", 1)[0]:
            raise SettingsError("the address of an endpoint carries a password, which params.yaml must not hold; name "
                                "a variable with it as key_variable")  # fmt: skip
        for name, value in {"new_tokens": new_tokens, "tries": tries, "parallel": parallel}.items():
            if not isinstance(value, int) or value < 1:
                raise SettingsError(f"endpoint: {name} must be a whole number >= 1, got {value!r}")
        self.url = f"{address.rstrip('/')}/chat/completions"
        self.model, self.licence, self.system = model, licence, system
        self.body = {"model": model, "max_tokens": new_tokens, "temperature": temperature, "seed": seed}
        self.key, self.tries, self.pause, self.timeout = secret(key_variable), tries, wait, timeout
        self.teacher = f"{model}@{prompt_hash(repr([sorted(self.body.items()), system]))[:12]}"
        self.batch = parallel

    def write(self, prompts: Sequence[Prompt]) -> list[str]:
        with ThreadPoolExecutor(self.batch) as pool:
            return list(pool.map(self._ask, prompts))

    def _ask(self, prompt: Prompt) -> str:
        said = [{"role": "system", "content": self.system}] * bool(self.system)
        body = json.dumps(self.body | {"messages": [*said, {"role": "user", "content": prompt.text}]}).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        for number in range(self.tries):
            try:
                with urlopen(Request(self.url, body, headers), timeout=self.timeout) as answer:
                    return _text(self.url, answer.read(), self.key)
            except HTTPError as error:
                if error.code not in LATER:
                    told = without(error.read().decode("utf-8", "replace"), self.key)[:300]
                    raise WriterRefused(f"{self.url} answered {error.code} to prompt {prompt.key}: {told}") from None
                last, asked = f"it answered {error.code}", _seconds(error.headers.get("Retry-After"))
            except (URLError, ConnectionError, TimeoutError) as error:
                last, asked = str(getattr(error, "reason", error)), 0.0
            if number + 1 < self.tries:
                time.sleep(min(max(self.pause * 2**number, asked), LONGEST))
        raise ConnectionError(f"{self.url} gave no answer to prompt {prompt.key} in {self.tries} tries: {last}")


def _text(url: str, content: bytes, key: str | None) -> str:
    try:
        return json.loads(content)["choices"][0]["message"]["content"] or ""
    except (ValueError, LookupError, TypeError):
        told = without(content.decode("utf-8", "replace"), key)[:200]
        raise WriterRefused(f"{url} does not speak the chat protocol, it answered: {told}") from None


def _seconds(told: str | None) -> float:
    """What Retry-After says, where it says seconds."""
    return float(told) if told and told.isdigit() else 0.0
