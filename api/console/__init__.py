"""The console: the service for people who would rather look than call.

An application of its own beside the API, in the same process and on the same stores: its views are closed by `needs`
like those of the API and call what those call, but a browser's session stands for the key.
"""
