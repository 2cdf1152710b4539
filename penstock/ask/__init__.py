"""What `penstock ask` does: questions to a running server over HTTP. Knows nothing of terminals."""

from penstock.ask.asker import Asker, Outcome
from penstock.ask.file import Prompt, Summary, ask_file

__all__ = ["Asker", "Outcome", "Prompt", "Summary", "ask_file"]
