"""A voice over HTTP. In: requests of OpenAI's speech API. Out: audio as it is spoken; a web page.

Read command, app, then requests, answers, admission, gate; web/ is the page.
"""
