"""The work of `penstock ask`: questions to a running server over HTTP. Knows nothing of terminals."""

from penstock.ask.asker import Asker, AskOutcome
from penstock.ask.file import Prompt, Summary, ask_file

__all__ = ["Asker", "AskOutcome", "Prompt", "Summary", "ask_file"]
