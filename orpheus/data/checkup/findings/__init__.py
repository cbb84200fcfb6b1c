"""What the measured features say: each finding is a small function that looks at one clip beside its voice.

Read sound, edges, texts, people.
"""
