"""Pages as their tags and their text, as written and as a browser shows them."""

import shutil
import subprocess
from html.parser import HTMLParser

CHROMIUM = shutil.which("chromium")


class Tags(HTMLParser):
    """Every tag with its attributes, and the text that stands outside scripts and styles."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.body = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "body":
            self.body = dict(attrs)

    def handle_data(self, data):
        self.text.append(data)


def parsed(document):
    tags = Tags()
    tags.feed(document)
    return tags


def shown(path, fragment=""):
    """The document after its script ran in headless Chromium."""
    profile = path.parent / "profile"
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile}", "--window-size=1280,2000", "--dump-dom", f"{path.as_uri()}{fragment}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return parsed(done.stdout)
