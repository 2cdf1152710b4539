"""What `penstock ask` does: questions to a running server over HTTP. Knows nothing of terminals."""

from penstock.ask.asker import Answer, Asker
from penstock.ask.file import Prompt, Summary, ask_file

__all__ = ["Answer", "Asker", "Prompt", "Summary", "ask_file"]
