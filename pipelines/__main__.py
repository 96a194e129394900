"""`python -m pipelines` is `msrcnn`, also where only the source tree is there, as in a submitted job."""

from pipelines.cli import main

main()
