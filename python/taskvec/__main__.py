"""``python -m taskvec`` is the command line."""

from taskvec.cli import main

main()
