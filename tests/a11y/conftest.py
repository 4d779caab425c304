"""A browser without a window, and axe-core, which looks for what screen readers stumble over."""

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

AXE = "axe-core@4.10.3"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
RUN = """
axe.run(document, {resultTypes: ["violations"]}).then(found => {
  const kept = found.violations.map(v => ({
    id: v.id, impact: v.impact, help: v.help,
    nodes: v.nodes.slice(0, 5).map(n => n.target.join(" ") + ": " + n.failureSummary),
  }));
  const place = document.createElement("pre");
  place.id = "axe-found";
  place.textContent = JSON.stringify({violations: kept, passes: found.passes.length});
  document.body.append(place);
});
"""


@pytest.fixture(scope="session")
def browser() -> str:
    """Return the path of Chromium, or skip with the reason."""
    for name in CHROMIUM:
        if found := shutil.which(name):
            return found
    pytest.skip("Chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="session")
def axe(pytestconfig: pytest.Config) -> str:
    """Return axe-core's script from the tests' cache, fetched once; skip where it cannot be."""
    cache = getattr(pytestconfig, "cache", None)
    if cache is None or not shutil.which("npm"):
        pytest.skip("axe-core cannot be fetched: npm is not installed")
    folder = Path(cache.mkdir("axe"))
    script = folder / f"{AXE}.js"
    if not script.exists():
        done = subprocess.run(
            ["npm", "pack", "--silent", AXE], cwd=folder, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip("axe-core cannot be fetched: the npm registry does not answer")
        archive = folder / done.stdout.split()[-1]
        with tarfile.open(archive) as packed:
            member = packed.extractfile("package/axe.min.js")
            assert member is not None
            script.write_bytes(member.read())
        archive.unlink()
    return script.read_text()


@pytest.fixture(scope="session")
def look(browser: str, axe: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a function: page -> what axe-core finds in it, in headless Chromium."""

    def run(page: Path) -> dict[str, Any]:
        # The page forbids scripts, so that its copy must not, and axe is put into the copy.
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
        folder = tmp_path_factory.mktemp("axe")
        copy = folder / "page.html"
        copy.write_text(
            text.replace("</body>", f"<script>{axe}</script><script>{RUN}</script></body>")
        )
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
        ]
        options += ["--virtual-time-budget=20000", "--disable-dev-shm-usage", "--dump-dom"]
        done = subprocess.run(
            [browser, *options, copy.as_uri()], capture_output=True, text=True, timeout=120
        )
        found = re.search(r'<pre id="axe-found">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found is not None, done.stderr[-2000:]
        answer: dict[str, Any] = json.loads(unescape(found[1]))
        return answer

    return run
