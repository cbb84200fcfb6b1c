"""Text to speech. In: text. Out: `Speech`, or chunks of samples as they come.

Read inference, rows, utterance, speech, guard, names; then reading (long texts) and live (the command line's ways).
"""
