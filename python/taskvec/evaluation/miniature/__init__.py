"""The paper in miniature: tiny models made from nothing, so that the whole experiment runs anywhere.

Needs the extra ``eval``; nothing is imported before it is used.
"""
