"""The instructions that a load test gives."""

TRANSCRIBE = "Transcribe the speech to text."
OTHER_INSTRUCTIONS = ("Summarise the speech in one sentence.", "What is the topic of the speech?")
