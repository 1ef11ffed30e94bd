"""`python -m cedm_ray` is `cedm-ray`."""

from cedm_ray.cli import main

main()
