"""The web page and the REST API of unmask: `unmask.web.app` and `unmask.web.server`."""

# Nothing is imported here: worker processes import this package and need no web server.
