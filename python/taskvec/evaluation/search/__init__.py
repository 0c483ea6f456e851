"""A search for a recipe: free values of it chosen by their score on a development part of the documents."""
