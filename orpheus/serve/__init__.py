"""A voice over HTTP. In: requests of OpenAI's speech API. Out: audio as it is spoken; a web page.

Read command, app, then requests, answers, spool, admission, gate, connections; web/ is the page.
"""
