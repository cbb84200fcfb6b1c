"""What is heard in a sound: words, pitch, tags, and figures with intervals. In: samples, texts. No model that speaks.

Read metrics, distance, numerals, recognise, whisper, tags, speakers, quality.
"""
