"""`python -m holdover` is `holdover`."""

from holdover.main import main

main()
