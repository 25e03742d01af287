"""The instructions that the adapter is trained under. Evaluation uses others too, which it must not have seen."""

TRANSCRIBE = (
    "Transcribe the speech to text.",
    "Transcribe the audio.",
    "Transcribe this recording.",
    "Transcribe.",
    "Please transcribe what is said.",
    "Write down what the speaker says.",
    "Write down exactly what you hear.",
    "Write out the words spoken in this clip.",
    "What does the speaker say?",
    "What is being said?",
    "What was said in the recording?",
    "Convert the speech into text.",
    "Turn this speech into written text.",
    "Type out the spoken words.",
    "Give me the transcript.",
    "Give the exact transcript of the audio.",
    "Provide a transcription of the speech.",
    "Produce a verbatim transcript.",
    "Repeat the following text exactly.",
    "Repeat what the speaker said, word for word.",
    "Speech to text, please.",
    "I need the text of this voice message.",
    "Listen and write what you hear.",
    "Can you transcribe this for me?",
)

# For these the target is the frozen LLM's own answer to the text.
ANSWER = (
    "Answer the question.",
    "Reply to the speaker.",
    "Respond to this in one sentence.",
    "What is the speaker talking about?",
    "Summarise this in one short sentence.",
    "What is the topic? Answer in a few words.",
    "Is this a question or a statement?",
    "Is the tone positive or negative?",
    "List the key words.",
    "Explain what this means.",
    "Continue the story with one sentence.",
    "Rewrite this in simpler words.",
)
