"""Record the tour of README.md anew: `make tour`. What it shows is what these commands printed, unedited.

Needs port 8000, the dev extra (the `openai` client) and a quiet machine, for the figures are this machine's.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARMILLARY = str(Path(sys.executable).parent / "armillary")
START, END = "<!-- tour: recorded by `make tour` -->", "<!-- end of tour -->"
CLIENT = """\
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")

PASSAGE = (
    "Read this: In B3 there is a green star. In C3 there is a green ring. In D4 there is a white cross. "
    "In D2 there is a brown ring. The blue cross is in D3."
)
for question in (
    f"{PASSAGE} What cell has the blue cross?",
    "How much is 89 + 13?",
    "Sort these from A to Z: flour, honey, rice, fish, wax, oil",
    "Read this: Hanwa is a shepherd by trade. Hanwa has the age of 32 years. Write age, name, trade of Hanwa as JSON.",
):
    answer = client.chat.completions.create(
        model="isles", temperature=0, messages=[{"role": "user", "content": question}]
    )
    print(f"Q: {question}\\nA: {answer.choices[0].message.content}\\n")
"""


def shown(*arguments: str, cwd: Path | None = None) -> str:
    """A command of ours and what it printed."""
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        [ARMILLARY, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=600
    )
    return f"$ armillary {' '.join(arguments)}\n{trimmed(done.stdout + ('' if done.returncode == 0 else done.stderr))}"


def trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def served() -> tuple[str, str]:
    """What `serve` printed, and what the client printed meanwhile."""
    with tempfile.TemporaryFile("w+") as output:
        server = subprocess.Popen([ARMILLARY, "serve", "isles"], stdout=output, stderr=subprocess.DEVNULL)
        try:
            while server.poll() is None and not ready(8000):
                time.sleep(0.2)
            client = subprocess.run([sys.executable, "-c", CLIENT], capture_output=True, text=True, check=True)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
        output.seek(0)
        return trimmed(output.read()), trimmed(client.stdout)


def tour() -> str:
    plan, answers = served()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "deployment.yaml").write_text("engine:\n  kv_blok: 100\n")
        typo = shown("serve", "deployment.yaml", cwd=Path(folder))
    parts = [
        f"Recorded on {platform.system()} {platform.machine()} with {os.cpu_count()} cores by `make tour`.",
        "It says what it will do, then does it:",
        f"```\n$ make serve\n{plan}\n```",
        "The `openai` client talks to it. The bundled model knows a small synthetic world, and nothing of ours:",
        f"```python\n{CLIENT}```",
        f"```\n{answers}\n```",
        "How well it knows that world is measured, on tasks whose facts and phrasings it never saw:",
        f"```\n{shown('eval', 'isles')}\n```",
        "What cannot work is refused, with what would:",
        f"```\n{shown('serve', '--kv-memory', '900GiB')}\n\n{typo}\n```",
        "What the machine can do is measured, and what follows for a model is said:",
        f"```\n{shown('doctor')}\n```",
    ]
    return "\n\n".join(parts)


def main() -> None:
    if ready(8000):
        raise SystemExit("port 8000 must be free; something is served there")
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(before):
        raise SystemExit(f"README.md must have the marks {START} and {END}")
    text = tour()
    temporary = ROOT / ".README.md.tmp"
    temporary.write_text(pattern.sub(lambda found: f"{START}\n\n{text}\n\n{END}", before), encoding="utf-8")
    os.replace(temporary, readme)


if __name__ == "__main__":
    main()
