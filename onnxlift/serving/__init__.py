"""Explainers in production: folders for model servers and for the browser, and a server of one's own."""
