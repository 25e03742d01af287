"""The experiments of SLM (arXiv 2310.00230, section 5) at a small scale: what an adapter's depth, its subsampling and a frozen
encoder do to what the adapter can say of the speech.

The target is the spelling of the words instead of a frozen LLM's next token, so a run takes minutes of one core.
"""
