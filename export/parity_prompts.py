"""Thirty varied user messages for comparing LLMs, and the chat turn around them."""

PREFIX = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"

PROMPTS = (
    "Hi.",
    "What is the capital of France?",
    "Repeat the following text exactly: the quick brown fox jumps over the lazy dog",
    "Fix the punctuation: hello how are you today i am fine thank you",
    "Translate to French: Good morning, my friend.",
    "Translate to English: Mañana será otro día.",
    "Write a haiku about the sea.",
    "List three fruits.",
    "What is 17 + 25?",
    "Count from 1 to 20.",
    "Summarise in one sentence: The committee met on Tuesday, argued six hours about the budget, and went home without a vote.",
    "Is the following sentence positive or negative? I would not watch this film again if you paid me.",
    "Extract the names: Anna called Peter, but Peter was out with Maria.",
    "Give me a recipe for pancakes.",
    "Explain photosynthesis to a child.",
    "Write a Python function that reverses a string.",
    "def fibonacci(n):\n    if n < 2:\n",
    "Who wrote Romeo and Juliet?",
    "Why is the sky blue?",
    "Complete the sentence: Once upon a time, in a small village by the river,",
    "What's the difference between a virus and a bacterium?",
    'Return JSON with the keys "city" and "country" for: I live in Oslo, Norway.',
    "MAKE THIS LOWER CASE: THE MEETING IS AT NOON.",
    "Name the days of the week.",
    "Tell me a joke about a cat and a 🐈 emoji.",
    "日本の首都はどこですか?",
    "What is the meaning of the word 'naïve'?",
    "   Too    many     spaces    here,   please   remove   them.   ",
    "In 1969, Apollo 11 landed on the Moon. Who was its commander, and in which year was he born?",
    "Write an email to my landlord, Mr. Brown, to say that the heating in flat 12B has been broken since 3 January, that it is "
    "8 °C inside, that I have called twice without an answer, and that I expect a repair within two days.",
)
